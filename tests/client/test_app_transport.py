"""An app of this process behind httpx: replies stream, leaving is seen, failures come through."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments.client.app_transport import AppTransport


def client(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=AppTransport(app), base_url="http://app")  # type: ignore[arg-type]


async def test_the_request_arrives_whole() -> None:
    seen: list[tuple[Scope, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, (await receive())["body"]))
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-kind", b"echo")]})
        await send({"type": "http.response.body", "body": b"done"})

    async with client(app) as http:
        reply = await http.post("/a b/%2F?q=1", json={"x": 1}, headers={"X-Mine": "yes"})
    assert (reply.status_code, reply.headers["x-kind"], reply.content) == (201, "echo", b"done")
    [(scope, body)] = seen
    assert (scope["method"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "POST",
        "/a b//",
        b"/a%20b/%2F",
        b"q=1",
    )
    assert (b"x-mine", b"yes") in scope["headers"]
    assert body == b'{"x":1}'


async def test_each_piece_comes_before_the_next_is_made() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"second", "more_body": False})

    async with client(app) as http, http.stream("GET", "/") as reply:
        pieces = reply.aiter_bytes()
        assert await anext(pieces) == b"first"
        go_on.set()
        assert [piece async for piece in pieces] == [b"second"]


async def test_who_closes_the_reply_has_left() -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with client(app) as http, http.stream("GET", "/") as reply:
        await anext(reply.aiter_bytes())
        assert not left.is_set()
    assert left.is_set()


async def test_who_is_cancelled_before_the_reply_has_left() -> None:
    waiting, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        waiting.set()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async with client(app) as http:
        asking = asyncio.create_task(http.get("/"))
        await waiting.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert left.is_set()


@pytest.mark.parametrize("begins", [False, True])
async def test_a_failure_of_the_app_is_the_clients(begins: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broken")

    async with client(app) as http:
        with pytest.raises(RuntimeError, match="broken"):
            await http.get("/")


async def test_an_app_that_ends_early_is_an_error() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async with client(app) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/")
