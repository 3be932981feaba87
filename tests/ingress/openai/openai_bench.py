"""What the tests of OpenAI's shapes work with: messages, pictures, the official clients, and streams read raw."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import httpx
from ingress.bench import Bench, data_url, picture, serving
from openai import AsyncOpenAI

PATIENCE_S = 20.0
RED = data_url(picture(size=(40, 30)))
WIDE = data_url(picture(size=(80, 20)))


def user(*parts: object) -> dict[str, object]:
    """Texts as they are, data URLs and ids as image_url."""
    content = [part if isinstance(part, dict) else _part(str(part)) for part in parts]
    return {"role": "user", "content": content}


def image(url: str, **fields: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


async def complete(bench: Bench, question: object = "Hello", **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": question}]
    return await bench.client.post("/v1/chat/completions", json={"messages": messages, **fields})


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def chunks_of(body: str) -> list[dict[str, object]]:
    """Asserts that every event is `data:` alone and that [DONE] is there once, as the last one."""
    assert body.endswith("\n\n")
    events = body.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    data = [event.removeprefix("data: ") for event in events]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


def openai_error(
    reply: httpx.Response, status: int, code: str | None = None, param: str | None = None
) -> dict[str, str]:
    """The error's body; asserts the shape that OpenAI's clients expect."""
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    error: dict[str, str] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    assert len(error["message"]) < 2000
    assert reply.headers["x-request-id"]
    if code is not None:
        assert (error["code"], error["param"]) == (code, param), error
    return error


@contextlib.asynccontextmanager
async def sdk(bench: Bench, **options: object) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a real server."""
    async with serving(bench.app) as address, sdk_at(address, **options) as client:
        yield client


def sdk_at(address: str, **options: object) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{address}/v1", api_key="none", **({"max_retries": 0} | options))  # type: ignore[arg-type]


def _part(value: str) -> dict[str, object]:
    return image(value) if value.startswith("data:") else {"type": "text", "text": value}
