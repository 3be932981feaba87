"""Server-sent events of a turn: `start`, `chunk`…, `done`; or `error` as the last one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.errors import RetinaError
from deployments.ingress.connection import run_while_connected
from deployments.ingress.error_replies import internal_error, to_reply
from deployments.ingress.schemas import ChatReply, ChunkEvent, StartEvent
from deployments.ingress.turns import TurnChunk, TurnEvent, TurnStarted

log = logging.getLogger(__name__)


async def open_events(events: AsyncGenerator[TurnEvent, None]) -> list[TurnEvent]:
    """TurnStarted and what follows it. Failures up to the first text happen here, while a status can be sent."""
    try:
        return [await anext(events), await anext(events)]
    except BaseException:
        await events.aclose()
        raise


async def _encode_all(
    opening: Sequence[TurnEvent], events: AsyncGenerator[TurnEvent, None]
) -> AsyncGenerator[bytes, None]:
    try:
        for event in opening:
            yield _encode(event)
        async for event in events:
            yield _encode(event)
    except RetinaError as error:
        yield _format("error", to_reply(error))
    except Exception:
        log.exception("a turn failed in mid-stream")
        yield _format("error", to_reply(internal_error()))


def _encode(event: TurnEvent) -> bytes:
    if isinstance(event, TurnStarted):
        return _format("start", StartEvent(session_id=event.session_id, model=event.model))
    if isinstance(event, TurnChunk):
        return _format("chunk", ChunkEvent(text=event.text))
    return _format("done", ChatReply.from_turn(event.reply))


def _format(name: str, data: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json())


class EventStream(Response):
    """Sends events until they end or the client leaves, and closes them in either case.

    Starlette's StreamingResponse leaves the iterator to the garbage collector when it is cancelled while sending;
    sse-starlette patches uvicorn when it is imported.
    """

    media_type = "text/event-stream"

    def __init__(
        self, opening: Sequence[TurnEvent], events: AsyncGenerator[TurnEvent, None], send_timeout_s: float
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._opening = opening  # pulled from `events` already
        self._events = events
        self._send_timeout_s = send_timeout_s  # a client that stops reading counts as gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await run_while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(_encode_all(self._opening, self._events)) as lines:
            async for line in lines:
                await self._send_body(send, line, more=True)
        await self._send_body(send, b"", more=False)

    async def _send_body(self, send: Send, data: bytes, *, more: bool) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except OSError as error:  # TimeoutError is one, and so is what servers raise for a closed connection
            raise ClientDisconnect from error
