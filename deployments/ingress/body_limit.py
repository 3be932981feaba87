"""The limit on request bodies, in front of all parsing: by Content-Length at once, otherwise counted while read."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import BodyTooLarge

LINGER_S = 2.0  # how long the rest of a refused body is read and thrown away


class BodyLimit:
    """ASGI middleware. Reading a body over the limit raises BodyTooLarge in whoever reads it."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            body = _CountedBody(receive, send, self._max_body_bytes, Headers(scope=scope).get("content-length", ""))
            receive, send = body.receive, body.send
        await self._app(scope, receive, send)


class _CountedBody:
    def __init__(self, receive: Receive, send: Send, max_bytes: int, declared: str) -> None:
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._num_bytes = int(declared) if declared.isdecimal() and int(declared) > max_bytes else 0
        self._is_ended = False

    @property
    def _is_refused(self) -> bool:
        return self._num_bytes > self._max_bytes

    async def receive(self) -> Message:
        if not self._is_refused:
            message = await self._next()
            self._num_bytes += len(message.get("body", b""))
        if self._is_refused:
            raise BodyTooLarge(
                f"the request's body is larger than {self._max_bytes} bytes (ingress.max_body_bytes)", "body"
            )
        return message

    async def send(self, message: Message) -> None:
        if not self._is_refused:
            await self._send(message)
        elif message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
            await self._send(message)
        else:
            await self._send_and_linger(message)

    async def _send_and_linger(self, message: Message) -> None:
        """Closing at once while the client still sends would reset the connection before it reads our reason."""
        await self._send({**message, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._is_ended:
                    await self._next()
        except TimeoutError:
            pass  # it had its time to read the reply
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> Message:
        message = await self._receive()
        self._is_ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message
