"""An ASGI app of this process behind an httpx client: replies stream, and a reply that is closed is a client that left.

httpx's own ASGITransport waits for the whole reply before it hands out the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope


class AppTransport(httpx.AsyncBaseTransport):
    """Belongs to one event loop. What the app raises is raised to the client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        body = b"".join([part async for part in request.stream])
        exchange = _Exchange(self._app, _scope(request), body)
        try:
            status, headers = await exchange.head()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(status, headers=headers, stream=exchange)


def _scope(request: httpx.Request) -> Scope:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.split(b"?")[0],
        "query_string": url.query,
        "server": (url.host, url.port or 80),
        "client": ("127.0.0.1", 0),
        "root_path": "",
        "state": {},
    }


class _Exchange(httpx.AsyncByteStream):
    """One run of the app: a request's body in, a reply's pieces out, each when the one before was taken."""

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._body: bytes | None = body  # None: the app has it
        self._sent: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        self._left = asyncio.Event()
        self._running = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        message = await self._next()
        assert message["type"] == "http.response.start"
        return message["status"], list(message["headers"])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._next()
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return

    async def aclose(self) -> None:
        """Returns when the app has ended. Raises what it raised, but for ClientDisconnect: that is our leaving."""
        self._left.set()
        while not self._running.done():  # whatever it still sends has no reader
            taking = asyncio.ensure_future(self._sent.get())
            await asyncio.wait({taking, self._running}, return_when=asyncio.FIRST_COMPLETED)
            taking.cancel()
        with contextlib.suppress(ClientDisconnect):
            await self._running

    async def _next(self) -> Message:
        taking = asyncio.ensure_future(self._sent.get())
        try:
            await asyncio.wait({taking, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done() and self._sent.empty():
                await self._running  # raises what the app raised
                raise httpx.RemoteProtocolError("the app ended in the middle of its reply")
            return await taking
        finally:
            taking.cancel()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._sent.put(message)
