"""A real cluster under `serve run`: the README's lines, many clients, clients that leave, bad input, status pages."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ENDLESS
from service import BIN, ROOT, Service, ask, events, ray_environment, unique_picture, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]

REPLY_KEYS = {
    "message",
    "response",
    "has_image",
    "model_used",
    "session_id",
    "conversation_length",
    "usage",
    "cost",
    "timings",
    "finish_reason",
}
USAGE_KEYS = {"prompt_tokens", "image_tokens", "reused_tokens", "completion_tokens"}
TIMING_KEYS = {"queue_ms", "encode_ms", "encode_source", "prefill_ms", "decode_ms", "first_token_ms"}


def test_ready_within_a_minute_and_a_half(service: Service) -> None:
    assert service.ready_s < 90


def test_readme_curl_lines_work_as_pasted(service: Service, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text().replace("http://localhost:8000", service.url)
    settings = "; ".join(re.findall(r"^[A-Z_]+=.*$", readme, re.MULTILINE))
    lines = re.findall(r"^curl .*$", readme, re.MULTILINE)
    assert len(lines) >= 7
    (tmp_path / "photo.jpg").write_bytes((ROOT / "demo" / "images" / "blue-square-and-yellow-star.jpg").read_bytes())
    answers = [_run_curl(line, settings, tmp_path) for line in lines]
    chats = [
        json.loads(answer)
        for line, answer in zip(lines, answers, strict=True)
        if '/chat" -F' in line and "stream" not in line
    ]
    assert all(set(chat) == REPLY_KEYS for chat in chats)
    assert any("Ada" in chat["response"] for chat in chats if "What is my name" in chat["message"])


def test_readme_python_blocks_that_ask_the_service_work_as_pasted(service: Service, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text().replace("localhost:8000", f"127.0.0.1:{service.port}")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "photo.jpg").write_bytes((ROOT / "demo" / "images" / "blue-square-and-yellow-star.jpg").read_bytes())
    outputs = []
    for block in blocks:
        if f"127.0.0.1:{service.port}" in block:
            command = [sys.executable, "-c", block]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{block}\n{done.stderr}"
            outputs.append(done.stdout)
    socket, completion, parsed, responses = outputs
    assert "Hello Ada! Nice to meet you." in socket
    assert "blue square at the top left" in completion
    assert "color=" in parsed
    assert "It is yellow." in responses


def _run_curl(line: str, settings: str, folder: Path) -> str:
    loud = 'curl() { command curl --no-progress-meter --fail-with-body "$@"; }'
    done = subprocess.run(
        ["bash", "-c", f"{loud}; {settings}; {line}"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_conversation_about_a_picture(service: Service) -> None:
    picture = (ROOT / "demo" / "images" / "red-circle.png").read_bytes()
    question = "What do you see in this image?"
    hello = ask(service, message="Hello, my name is Grace").json()
    session = hello["session_id"]
    assert set(hello) == REPLY_KEYS
    assert set(hello["usage"]) == USAGE_KEYS
    assert set(hello["timings"]) == TIMING_KEYS
    assert (hello["has_image"], hello["conversation_length"], hello["usage"]["image_tokens"]) == (False, 2, 0)
    seen = ask(service, picture, message=question, session_id=session).json()
    assert (seen["has_image"], seen["conversation_length"]) == (True, 4)
    assert seen["usage"]["image_tokens"] == 16
    name = ask(service, message="What is my name?", session_id=session).json()
    assert "Grace" in name["response"]
    history = service.get(f"/chat/history/{session}")
    assert (history["session_id"], history["length"]) == (session, 6)
    assert [message["role"] for message in history["history"]] == ["user", "assistant"] * 3
    assert history["history"][2]["content"] == [{"type": "image"}, {"type": "text", "text": question}]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", m["timestamp"]) for m in history["history"])
    with service.client() as client:
        assert session in [one["session_id"] for one in client.get("/chat/sessions").json()["sessions"]]
        assert client.delete(f"/chat/history/{session}").status_code == 200
        assert client.get(f"/chat/history/{session}").status_code == 404


def test_sixteen_clients_stream_right_answers_at_once(service: Service, golden: list[dict[str, Any]]) -> None:
    conversations = [golden[index % len(golden)] for index in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda conversation: _stream_conversation(service, conversation), conversations))
    assert answers == [[answer for _, answer in conversation["turns"]] for conversation in conversations]


def _stream_conversation(service: Service, conversation: dict[str, Any]) -> list[str]:
    session, answers = "", []
    for index, (question, _) in enumerate(conversation["turns"]):
        shown = conversation.get("image") if index == conversation.get("image_turn") else None
        files = {"image": (ROOT / "demo" / "images" / shown).read_bytes()} if shown else None
        form = {"message": question, "stream": "true"} | ({"session_id": session} if session else {})
        reply = _stream_turn(service, form, files)
        session = reply["session_id"]
        answers.append(reply["response"])
    return answers


def _stream_turn(service: Service, form: dict[str, str], files: dict[str, bytes] | None) -> dict[str, Any]:
    with service.client() as client, client.stream("POST", "/chat", data=form, files=files) as response:
        assert response.status_code == 200
        seen = list(events(response))
    assert seen[0][0] == "start"
    name, reply = seen[-1]
    assert name == "done"
    assert "".join(data["text"] for name, data in seen if name == "chunk") == reply["response"]
    return dict(reply)


async def test_a_client_that_leaves_mid_stream_frees_its_slot(service: Service) -> None:
    form = {
        "message": "Tell me everything",
        "model": ENDLESS,
        "stream": "true",
        "max_new_tokens": "4000",
        "session_id": "leaver",
    }
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        async with client.stream("POST", "/chat", data=form) as response:
            assert response.status_code == 200
            lines = response.aiter_lines()  # kept: an iterator that is dropped closes the connection
            async for line in lines:
                if line.startswith("event: chunk"):
                    break
            busy = (await client.get("/-/engine")).json()[ENDLESS]
            assert busy["free_slots"] == busy["num_slots"] - 1
        for _ in range(100):
            idle = (await client.get("/-/engine")).json()[ENDLESS]
            if idle["free_slots"] == idle["num_slots"]:
                break
            await asyncio.sleep(0.05)
        assert idle["free_slots"] == idle["num_slots"]
        assert idle["metrics"]["generator_cancelled.decode"] >= 1
        assert (await client.get("/chat/history/leaver")).status_code == 404  # the turn never happened
        again = await client.post("/chat", data={"message": "Hello", "session_id": "leaver"})
        assert again.status_code == 200  # and its lease was given back


def test_the_same_picture_is_encoded_once_for_twenty_requests(service: Service) -> None:

    picture = unique_picture(20)
    before = service.get("/-/cache")["metrics"].get("vision_encoder_tower_images", 0)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: ask(service, picture, message="What do you see in this image?"), range(20)))
    assert [reply.status_code for reply in replies] == [200] * 20
    assert len({reply.json()["response"] for reply in replies}) == 1
    assert service.get("/-/cache")["metrics"]["vision_encoder_tower_images"] == before + 1


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({}, (400, 422), "message"),
        ({"message": ""}, (400, 422), "message"),
        ({"message": "x" * 1_000_000}, (413,), "message"),
        ({"message": "hi", "model": "gpt-9"}, (400,), "smolvlm"),
        ({"message": "hi", "temprature": "1"}, (400, 422), "temperature"),
        ({"message": "hi", "session_id": "a/../b"}, (400,), "session_id"),
        ({"message": "hi", "session_id": "a\x00b"}, (400,), "session_id"),
        ({"message": "hi", "session_id": "s" * 10_000}, (400,), "session_id"),
        ({"message": "hi", "max_new_tokens": "100000"}, (400,), "max_new_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_fields_are_refused_with_the_reason(
    service: Service, form: dict[str, str], status: tuple[int, ...], said: str
) -> None:
    response = ask(service, **form)
    assert response.status_code in status
    assert said in json.dumps(response.json()["error"])
    assert len(response.content) < 2000


def test_a_30_mb_file_is_refused(service: Service) -> None:
    response = ask(service, b"\xff\xd8\xff" + bytes(30_000_000), message="hi")
    assert response.status_code == 413


def test_unknown_sessions_are_404(service: Service) -> None:
    with service.client() as client:
        assert client.get("/chat/history/nobody").status_code == 404
        assert client.delete("/chat/history/nobody").status_code == 404


def test_serve_status_shows_each_deployment_healthy(service: Service) -> None:
    environment = {**ray_environment(), "RAY_AUTH_MODE": "token"}  # Ray guards its dashboard with ~/.ray/auth_token
    command = [BIN / "serve", "status", "--address", service.dashboard]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    for name in ("ingress", "session_router", "vision_encoder", "generator-smolvlm", "generator-moondream"):
        assert re.search(rf"{name}:\s+status: HEALTHY", shown.stdout), shown.stdout
    assert re.search(r"retina:\s+status: RUNNING", shown.stdout), shown.stdout


def test_introspection_pages(service: Service) -> None:
    config: Any = service.get("/-/config")
    assert config["models"][0]["name"] == "smolvlm"
    assert service.get("/-/engine")["smolvlm"]["num_slots"] == 16
    assert service.get("/-/cache")["towers"]
    assert service.get("/healthz")
    wait_for(lambda: service.get("/-/engine")["smolvlm"]["free_slots"] == 16, 10, "idle engine")
