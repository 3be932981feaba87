"""The app as a whole: its OpenAPI, its page, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
from ingress.bench import Bench, error_of, serving

ROUTES = {
    ("post", "/chat"),
    ("get", "/chat/history/{session_id}"),
    ("delete", "/chat/history/{session_id}"),
    ("get", "/chat/sessions"),
    ("post", "/images"),
    ("get", "/images/{image_id}"),
    ("delete", "/images/{image_id}"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/-/config"),
    ("get", "/-/engine"),
    ("get", "/-/cache"),
    ("get", "/-/session_router"),
    ("get", "/-/ingress"),
}


async def test_openapi_lists_all_routes(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    assert {(method, path) for path, item in document["paths"].items() for method in item} == ROUTES


async def test_openapi_of_chat(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    chat = document["paths"]["/chat"]["post"]
    bodies = chat["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json", "application/x-www-form-urlencoded"}
    for body in bodies.values():
        assert body["schema"]["required"] == ["message"]
        assert body["schema"]["additionalProperties"] is False
        assert "$ref" not in str(body)
    assert bodies["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorReply")
    has_image = document["components"]["schemas"]["ChatReply"]["properties"]["has_image"]
    assert "the session's" in has_image["description"]


async def test_the_page_takes_nothing_from_elsewhere(bench: Bench) -> None:
    page = await bench.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    names = re.findall(r'(?:src|href)="(ui/[^"]+)"', page.text)
    assert len(names) == 2
    for name in names:
        file = await bench.client.get(f"/{name}")
        assert file.status_code == 200
        assert file.headers["content-security-policy"] == policy
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|eval\(|document\.write", file.text)
    assert not re.search(r"https?://|style=|<script>|\son[a-z]+=", page.text)


async def test_the_page_refers_to_its_own_elements(bench: Bench) -> None:
    page, script = (await bench.client.get("/")).text, (await bench.client.get("/ui/app.js")).text
    used = set(re.findall(r'byId\("(\w+)"\)', script)) | {"messages", "status", "form", "question", "file"}
    assert used <= set(re.findall(r'id="(\w+)"', page))


async def test_the_page_serves_its_own_files_only(bench: Bench) -> None:
    for name in ("other.js", "..%2Fapp.py", "%2Fetc%2Fpasswd"):
        error_of(await bench.client.get(f"/ui/{name}"), 404, "not_found")


async def test_it_starts_and_stops(bench: Bench) -> None:
    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}


def test_importing_it_is_light() -> None:
    code = "import sys, deployments.ingress.app, deployments.fakes; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
