"""The app as a whole: its OpenAPI, its page, and what importing it costs."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest
from ingress.bench import Bench, picture, serving

ROUTES = {
    ("post", "/chat"),
    ("get", "/chat/streams/{stream_id}"),
    ("post", "/chat/streams/{stream_id}/stop"),
    ("post", "/v1/chat/completions"),
    ("post", "/v1/responses"),
    ("get", "/v1/responses/{response_id}"),
    ("delete", "/v1/responses/{response_id}"),
    ("post", "/v1/responses/{response_id}/cancel"),
    ("get", "/v1/responses/{response_id}/input_items"),
    ("post", "/v1/conversations"),
    ("get", "/v1/conversations/{conversation_id}"),
    ("post", "/v1/conversations/{conversation_id}"),
    ("delete", "/v1/conversations/{conversation_id}"),
    ("get", "/v1/conversations/{conversation_id}/items"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("post", "/v1/files"),
    ("get", "/v1/files"),
    ("get", "/v1/files/{file_id}"),
    ("delete", "/v1/files/{file_id}"),
    ("get", "/v1/files/{file_id}/content"),
    ("post", "/caption"),
    ("post", "/query"),
    ("post", "/detect"),
    ("post", "/point"),
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
NAMED_ENOUGH = {"top_p"}  # fields that everybody knows by their name


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


@pytest.mark.parametrize(
    ("path", "required", "answer", "events"),
    [
        ("/caption", [], "caption", ["start", "chunk", "done"]),
        ("/query", ["question"], "answer", ["start", "thought", "chunk", "done"]),
        ("/detect", ["object"], "objects", ["start", "object", "done"]),
        ("/point", ["object"], "points", ["start", "point", "done"]),
    ],
)
async def test_openapi_of_the_routes_for_one_picture(
    bench: Bench, path: str, required: list[str], answer: str, events: list[str]
) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    route = document["paths"][path]["post"]
    bodies = {kind: body["schema"] for kind, body in route["requestBody"]["content"].items()}
    assert set(bodies) == {"multipart/form-data", "application/json", "application/x-www-form-urlencoded"}
    for body in bodies.values():
        assert body.get("required", []) == required
        assert body["additionalProperties"] is False
        assert body["examples"]
        assert {"image_id", "model", "stream", *required} <= set(body["properties"])
        assert all(field.get("description") for name, field in body["properties"].items() if name not in NAMED_ENOUGH)
        assert "$ref" not in str(body)
    assert bodies["multipart/form-data"]["properties"]["image"]["format"] == "binary"
    assert "image" not in bodies["application/x-www-form-urlencoded"]["properties"]
    replies = route["responses"]["200"]["content"]
    assert re.findall(r"event: (\w+)", replies["text/event-stream"]["example"]) == events
    reply = document["components"]["schemas"][replies["application/json"]["schema"]["$ref"].rpartition("/")[2]]
    assert {answer, "model_used", "request_id", "image_id", "finish_reason", "usage", "timings"} <= set(
        reply["required"]
    )
    assert set(reply["required"]) <= set(reply["examples"][0])


async def test_openapi_says_how_places_are_sent(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    bodies = document["paths"]["/query"]["post"]["requestBody"]["content"]
    places = {kind: body["schema"]["properties"]["spatial_refs"] for kind, body in bodies.items()}
    assert places["application/json"]["type"] == "array"
    for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        assert (places[kind]["type"], places[kind]["contentMediaType"]) == ("string", "application/json")
        assert places[kind]["description"] == places["application/json"]["description"]


async def test_the_examples_of_openapi_are_taken(bench: Bench) -> None:
    document = (await bench.client.get("/openapi.json")).json()
    image_id = (await bench.client.post("/images", files={"image": picture()})).json()["id"]
    for path in ("/caption", "/query", "/detect", "/point"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for example in schema["examples"]:
            reply = await bench.client.post(path, json={**example, "image_id": image_id})
            assert reply.status_code == 200, reply.text


async def test_it_starts_and_stops(bench: Bench) -> None:
    async with serving(bench.app) as address, httpx.AsyncClient(base_url=address) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}


def test_importing_it_is_light() -> None:
    code = "import sys, deployments.ingress.app, deployments.fakes; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
