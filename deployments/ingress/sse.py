"""An answer as server-sent events: whatever it is made of, and `error` as the last one when it fails."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Generic, TypeVar

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deployments.errors import RetinaError
from deployments.ingress.connection import run_while_connected
from deployments.ingress.deadline import Watch
from deployments.ingress.error_replies import internal_error, to_reply

Event = TypeVar("Event")
log = logging.getLogger(__name__)


async def open_events(events: AsyncGenerator[Event, None]) -> list[Event]:
    """The start and what follows it. Failures up to the first piece happen here, while a status can be sent."""
    try:
        return [await anext(events), await anext(events)]
    except BaseException:
        await events.aclose()
        raise


class RunningIds:
    """Ids of the events of one stream that is not kept: 0, 1, 2, …"""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def next(self) -> str:
        return str(next(self._numbers))


def encode_event(name: str, data: BaseModel, event_id: str | None = None) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json(), id=event_id)


_to_json = json.JSONEncoder(ensure_ascii=False).encode


def encode_text(name: str, text: str, event_id: str) -> bytes:
    """What `encode_event` makes of a body whose one field is `text`, in a fifth of the time: there is one per token."""
    return f'event: {name}\ndata: {{"text":{_to_json(text)}}}\nid: {event_id}\n\n'.encode()


class EventStream(Response, Generic[Event]):
    """Sends events until they end or the client leaves, and closes them in either case.

    Starlette's StreamingResponse leaves the iterator to the garbage collector when it is cancelled while sending;
    sse-starlette patches uvicorn when it is imported.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        opening: Sequence[Event],
        events: AsyncGenerator[Event, None],
        encode: Callable[[Event], bytes],
        send_timeout_s: float,
        ids: RunningIds | None = None,  # those that `encode` draws from, for the error
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._opening = opening  # pulled from `events` already
        self._events = events
        self._encode = encode  # one event as any number of server-sent ones
        self._ids = ids
        self._send_timeout_s = send_timeout_s  # a client that stops reading counts as gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            await run_while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with contextlib.closing(Watch(each_s=self._send_timeout_s)) as watch:
            async with contextlib.aclosing(self._encode_all()) as lines:
                async for line in lines:
                    await _send_body(send, line, watch, more=True)
            await _send_body(send, b"", watch, more=False)

    async def _encode_all(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._opening:  # in one message: each is a hop of its own
                yield b"".join(self._encode(event) for event in self._opening)
            async for event in self._events:
                yield self._encode(event)
        except RetinaError as error:
            yield self._encode_error(error)
        except Exception:
            log.exception("an answer failed in mid-stream")
            yield self._encode_error(internal_error())

    def _encode_error(self, error: RetinaError) -> bytes:
        # Without an id where events are kept: the last one that arrived is where the client goes on.
        return encode_event("error", to_reply(error), self._ids.next() if self._ids is not None else None)


async def _send_body(send: Send, data: bytes, watch: Watch, *, more: bool) -> None:
    try:
        await watch.wait(lambda: send({"type": "http.response.body", "body": data, "more_body": more}))
    except OSError as error:  # TimeoutError is one, and so is what servers raise for a closed connection
        raise ClientDisconnect from error
