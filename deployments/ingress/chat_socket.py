"""One client at /ws/chat: its messages one after another, its turns side by side, one sender at a time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi.exceptions import RequestValidationError
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from deployments.errors import InvalidRequest, Overloaded, RetinaError, StreamNotFound
from deployments.ingress.chat_input import to_turn_input
from deployments.ingress.error_replies import internal_error, to_reply, to_validation_reply
from deployments.ingress.form_body import Form
from deployments.ingress.request_id import named_request
from deployments.ingress.schemas import ErrorReply
from deployments.ingress.services import Services
from deployments.ingress.socket_schemas import (
    AskMessage,
    BadMessage,
    ClientMessage,
    PingMessage,
    ResumeMessage,
    StopMessage,
    read_message,
    write_message,
)
from deployments.ingress.stream_routes import event_id
from deployments.ingress.turn_events import to_named_body

log = logging.getLogger(__name__)
Work = Callable[[], Awaitable[None]]

MAX_TURNS = 8  # under way on one socket
RETRY_AFTER_S = 1.0

TOO_LARGE, GOING_AWAY, TOO_SLOW = 1009, 1001, 1008  # close codes of RFC 6455


class SocketOver(Exception):
    """The socket must be closed, or is. Never leaves the route."""

    def __init__(self, why: str, code: int | None = None, reason: str = "") -> None:
        super().__init__(why)
        self.why = why  # for the metric
        self.code = code  # None: the client has left
        self.reason = reason


@dataclass(eq=False, slots=True)
class _UnderWay:
    """A turn whose events go to this socket."""

    stream_id: str | None = None  # None until the turn is open
    is_stop_asked: bool = False


class ChatSocket:
    """All turns are kept streams: when the socket is lost, they go on for a while and can be resumed on another."""

    def __init__(self, socket: WebSocket, services: Services, tenant: str) -> None:
        self._socket = socket
        self._services = services
        self._tenant = tenant
        self._limits = services.config.ingress
        self._under_way: set[_UnderWay] = set()
        self._sending = asyncio.Lock()
        self._used_s = 0.0  # of the event loop's clock: the last message or end of a turn

    async def run(self) -> None:
        """Raises SocketOver, once no turn's events go to this socket any more."""
        over = SocketOver("left")
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._take(await self._receive(), tasks)
        except* SocketOver as group:
            first = group.exceptions[0]
            assert isinstance(first, SocketOver), "a TaskGroup's group is flat"
            over = first
        raise over

    # ----------------------------------------------------------------------------- messages

    async def _receive(self) -> str | None:
        """The text of the next message; None for one that is binary."""
        message = await self._next_message()
        if message["type"] == "websocket.disconnect":
            raise SocketOver("left")
        text: str | None = message.get("text")
        size = len(text.encode()) if text is not None else len(message["bytes"])
        if size > self._limits.max_body_bytes:
            reason = f"a message has {size} bytes, more than {self._limits.max_body_bytes} (ingress.max_body_bytes)"
            raise SocketOver("too_large", TOO_LARGE, reason)
        return text

    async def _next_message(self) -> Message:
        loop = asyncio.get_running_loop()
        self._used_s = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(self._used_s + self._limits.socket_idle_s):
                    return await self._socket.receive()
            except TimeoutError:
                if self._under_way:
                    self._used_s = loop.time()
                elif loop.time() - self._used_s >= self._limits.socket_idle_s:
                    reason = f"no message for {self._limits.socket_idle_s:g} s (ingress.socket_idle_s)"
                    raise SocketOver("idle", GOING_AWAY, reason) from None

    async def _take(self, text: str | None, tasks: asyncio.TaskGroup) -> None:
        with named_request(None):  # each message is a request of its own
            try:
                if text is None:
                    raise InvalidRequest("messages are text, JSON objects; this one is binary")
                form = read_message(text)
            except BadMessage as error:
                await self._send_error(error.reason, error.tag)
            except InvalidRequest as error:
                await self._send_error(error, None)
            else:
                await self._heed(form, tasks)

    async def _heed(self, form: Form[ClientMessage], tasks: asyncio.TaskGroup) -> None:
        message = form.asked
        match message:
            case PingMessage():
                await self._send(write_message("pong", message.id))
            case StopMessage():
                await self._reporting(lambda: self._stop(message), message.id)
            case _ if len(self._under_way) >= MAX_TURNS:
                many = Overloaded(f"{MAX_TURNS} turns are under way on this socket already", "type", RETRY_AFTER_S)
                await self._send_error(many, message.id)
            case AskMessage():
                asked = self._put_under_way()
                work = functools.partial(self._ask, message, form.picture, asked)
                tasks.create_task(self._until_over(asked, work, message.id))
            case ResumeMessage():
                resumed = self._put_under_way(message.stream_id)
                tasks.create_task(self._until_over(resumed, functools.partial(self._resume, message), message.id))

    # ----------------------------------------------------------------------------- turns

    def _put_under_way(self, stream_id: str | None = None) -> _UnderWay:
        under_way = _UnderWay(stream_id)
        self._under_way.add(under_way)
        return under_way

    async def _until_over(self, under_way: _UnderWay, work: Work, tag: str | None) -> None:
        try:
            await self._reporting(work, tag)
        finally:
            self._under_way.discard(under_way)
            self._used_s = asyncio.get_running_loop().time()

    async def _ask(self, message: AskMessage, picture: bytes | None, under_way: _UnderWay) -> None:
        turn = await to_turn_input(message, picture, self._services, self._tenant)
        under_way.stream_id = stream_id = await self._services.streams.begin(turn)
        if under_way.is_stop_asked:
            await self._services.streams.stop(self._tenant, stream_id)
        await self._follow(stream_id, -1, message.id)

    async def _resume(self, message: ResumeMessage) -> None:
        if not await self._services.streams.check(self._tenant, message.stream_id, message.after):
            raise InvalidRequest(f"the stream ended with event {message.after}; nothing comes after it", "after")
        await self._follow(message.stream_id, message.after, message.id)

    async def _follow(self, stream_id: str, after: int, tag: str | None) -> None:
        async with contextlib.aclosing(self._services.streams.follow(self._tenant, stream_id, after)) as events:
            async for index, event in events:
                name, body = to_named_body(event)
                await self._send(write_message(name, tag, event_id(stream_id, index), body.model_dump_json()))

    async def _stop(self, message: StopMessage) -> None:
        stream_id = message.stream_id
        if stream_id is None:
            under_way = self._the_one_under_way()
            under_way.is_stop_asked = True  # before its turn is open, too
            stream_id = under_way.stream_id
        if stream_id is not None:
            await self._services.streams.stop(self._tenant, stream_id)

    def _the_one_under_way(self) -> _UnderWay:
        if not self._under_way:
            raise StreamNotFound("no turn is under way on this socket", "stream_id")
        if len(self._under_way) > 1:
            raise InvalidRequest(f"{len(self._under_way)} turns are under way on this socket; name one", "stream_id")
        return next(iter(self._under_way))

    # ----------------------------------------------------------------------------- sending

    async def _reporting(self, work: Work, tag: str | None) -> None:
        """What goes wrong is an event; the socket stays."""
        try:
            await work()
        except SocketOver:
            raise
        except Exception as error:
            await self._send_error(error, tag)

    async def _send_error(self, error: BaseException, tag: str | None) -> None:
        await self._send(write_message("error", tag, data=_to_error_reply(error).model_dump_json()))

    async def _send(self, text: str) -> None:
        """Raises SocketOver when the client has left or does not read."""
        timeout_s = self._limits.turn_timeout_s
        try:
            async with asyncio.timeout(timeout_s), self._sending:
                await self._socket.send_text(text)
        except TimeoutError:
            raise SocketOver("slow", TOO_SLOW, f"nothing was read for {timeout_s:g} s") from None
        except (WebSocketDisconnect, WebSocketDisconnected):
            raise SocketOver("left") from None


def _to_error_reply(error: BaseException) -> ErrorReply:
    if isinstance(error, RetinaError):
        return to_reply(error)
    if isinstance(error, RequestValidationError):
        return to_validation_reply(error)
    log.error("a message on a socket failed", exc_info=error)
    return to_reply(internal_error())
