"""A method for each surface of the service that the commands use, in the ingress's own schemas."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError
from pydantic import BaseModel, ValidationError

from deployments.client.failures import error_of, to_error, unreachable
from deployments.client.kept_stream import LAST_EVENTS, ComingBack, KeptStream
from deployments.errors import RetinaError
from deployments.ingress.openai.models import ModelList
from deployments.ingress.schemas import (
    ChatReply,
    ChatRequest,
    ChunkEvent,
    DeletedImage,
    DeletedSession,
    ErrorReply,
    HistoryReply,
    ImageReply,
    SessionsReply,
    StartEvent,
)
from deployments.ingress.task_replies import (
    BoxBody,
    CaptionReply,
    DetectReply,
    PointBody,
    PointReply,
    QueryReply,
    TaskStartEvent,
)
from deployments.ingress.task_requests import CaptionRequest, DetectRequest, PictureFields, PointRequest, QueryRequest

Shape = TypeVar("Shape", bound=BaseModel)
TaskReplyBody = CaptionReply | QueryReply | DetectReply | PointReply
ChatEvent = StartEvent | ChunkEvent | ChatReply


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what comes before the answer."""

    text: str


TaskEvent = TaskStartEvent | ChunkEvent | Thought | BoxBody | PointBody | TaskReplyBody
ROUTES: Mapping[type[PictureFields], tuple[str, type[TaskReplyBody]]] = {
    CaptionRequest: ("/caption", CaptionReply),
    QueryRequest: ("/query", QueryReply),
    DetectRequest: ("/detect", DetectReply),
    PointRequest: ("/point", PointReply),
}


class ServiceClient:
    """Every method raises ServerUnreachable, and what the service answered as the error that it was there."""

    def __init__(self, http: httpx.AsyncClient, coming_back: ComingBack | None = None) -> None:
        self._http = http
        self._coming_back = coming_back or ComingBack()

    # ------------------------------------------------------------------------------- chat

    async def chat(self, asked: ChatRequest) -> ChatReply:
        return await self._ask("/chat", asked, ChatReply)

    async def stream_chat(self, asked: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """StartEvent, ChunkEvents, ChatReply; the service keeps the answer, so a broken connection is gone on with.

        Closing it does not stop the answer: `stop` does.
        """
        request = self._streamed("/chat", asked.model_copy(update={"stream": True, "resumable": True}))
        events = KeptStream(self._http, request, self._coming_back).events()
        with self._reaching():
            async with contextlib.aclosing(events):
                async for event in events:
                    yield self._to_chat_event(event)

    async def stream_chat_once(self, asked: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """The same over one connection, kept by nobody: closing it cancels the turn."""
        request = self._streamed("/chat", asked.model_copy(update={"stream": True}))
        async with contextlib.aclosing(self._events(request)) as events:
            async for event in events:
                yield self._to_chat_event(event)

    async def stop(self, stream_id: str) -> None:
        """End an answer where it is; what was said until then is the answer."""
        await self._send("POST", f"/chat/streams/{stream_id}/stop")

    async def sessions(self, limit: int | None = None) -> SessionsReply:
        params = {} if limit is None else {"limit": limit}
        return self._read(await self._send("GET", "/chat/sessions", params=params), SessionsReply)

    async def history(self, session_id: str) -> HistoryReply:
        return self._read(await self._send("GET", _session_path(session_id)), HistoryReply)

    async def delete_session(self, session_id: str) -> DeletedSession:
        return self._read(await self._send("DELETE", _session_path(session_id)), DeletedSession)

    # ------------------------------------------------------------------------------- pictures

    async def add_image(self, data: bytes) -> ImageReply:
        """Upload a picture once; its id is for `image_id`."""
        return self._read(await self._send("POST", "/images", files={"image": data}), ImageReply)

    async def delete_image(self, image_id: str) -> DeletedImage:
        return self._read(await self._send("DELETE", f"/images/{image_id}"), DeletedImage)

    async def run_task(self, asked: PictureFields) -> TaskReplyBody:
        path, shape = ROUTES[type(asked)]
        return await self._ask(path, asked, shape)

    async def stream_task(self, asked: PictureFields) -> AsyncGenerator[TaskEvent, None]:
        """TaskStartEvent, pieces, and the whole reply. Closing it cancels the task."""
        path, shape = ROUTES[type(asked)]
        request = self._streamed(path, asked.model_copy(update={"stream": True}))
        async with contextlib.aclosing(self._events(request)) as events:
            async for event in events:
                yield self._to_task_event(event, shape)

    # ------------------------------------------------------------------------------- the rest

    async def models(self) -> ModelList:
        return self._read(await self._send("GET", "/v1/models"), ModelList)

    async def get(self, path: str) -> httpx.Response:
        """Any page, read to its end; its status is for the caller to judge."""
        with self._reaching():
            return await self._http.get(path)

    # ------------------------------------------------------------------------------- how

    async def _ask(self, path: str, asked: BaseModel, shape: type[Shape]) -> Shape:
        return self._read(await self._send("POST", path, content=_to_json(asked), headers=JSON), shape)

    def _streamed(self, path: str, asked: BaseModel) -> httpx.Request:
        headers = {**JSON, "Accept": "text/event-stream"}
        return self._http.build_request("POST", path, content=_to_json(asked), headers=headers)

    async def _send(self, method: str, path: str, **fields: object) -> httpx.Response:
        with self._reaching():
            response = await self._http.request(method, path, **fields)  # type: ignore[arg-type]
        if not response.is_success:
            raise error_of(response)
        return response

    async def _events(self, request: httpx.Request) -> AsyncGenerator[ServerSentEvent, None]:
        with self._reaching():
            response = await self._http.send(request, stream=True)
            async with contextlib.aclosing(response):
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                async for event in EventSource(response).aiter_sse():
                    yield event
                    if event.event in LAST_EVENTS:
                        return
                raise httpx.RemoteProtocolError("the stream ended in the middle of the answer")

    def _to_chat_event(self, event: ServerSentEvent) -> ChatEvent:
        match event.event:
            case "start":
                return self._parse(event.data, StartEvent)
            case "chunk":
                return self._parse(event.data, ChunkEvent)
            case "done":
                return self._parse(event.data, ChatReply)
        raise self._failure(event)

    def _to_task_event(self, event: ServerSentEvent, shape: type[TaskReplyBody]) -> TaskEvent:
        match event.event:
            case "start":
                return self._parse(event.data, TaskStartEvent)
            case "thought":
                return Thought(self._parse(event.data, ChunkEvent).text)
            case "chunk":
                return self._parse(event.data, ChunkEvent)
            case "object":
                return self._parse(event.data, BoxBody)
            case "point":
                return self._parse(event.data, PointBody)
            case "done":
                return self._parse(event.data, shape)
        raise self._failure(event)

    def _failure(self, event: ServerSentEvent) -> RetinaError:
        if event.event == "error":
            return to_error(self._parse(event.data, ErrorReply).error, 500)
        return self._strange(f"an event {event.event[:40]!r}")

    def _read(self, response: httpx.Response, shape: type[Shape]) -> Shape:
        return self._parse(response.content, shape)

    def _parse(self, data: str | bytes, shape: type[Shape]) -> Shape:
        try:
            return shape.model_validate_json(data, extra="ignore")
        except ValidationError as error:
            raise self._strange(f"what is no {shape.__name__}") from error

    def _strange(self, what: str) -> RetinaError:
        address = self._http.base_url
        return RetinaError(f"{address} sent {what}: is it Retina, and of this version? `retina --version` tells ours")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except SSEError as error:  # one of httpx's TransportErrors, too
            raise self._strange("no stream of events") from error
        except httpx.TransportError as error:
            raise unreachable(str(self._http.base_url), error) from error


JSON = {"Content-Type": "application/json"}


def _to_json(asked: BaseModel) -> bytes:
    """Only what was said: some fields exclude each other, their defaults as well."""
    return asked.model_dump_json(exclude_unset=True).encode()


def _session_path(session_id: str) -> str:
    return f"/chat/history/{urllib.parse.quote(session_id, safe='')}"
