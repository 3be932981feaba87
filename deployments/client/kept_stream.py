"""The events of one answer that the service keeps, each once, over as many connections as it takes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_exponential

from deployments.client.failures import error_of, unreachable
from deployments.errors import Overloaded, PartUnavailable
from deployments.ingress.schemas import StartEvent

LAST_EVENTS = frozenset({"done", "error"})
COME_BACK_WITHIN_S = 60.0
MAX_CONNECTIONS_IN_VAIN = 5  # one after another that gave no event


@dataclass(frozen=True, slots=True)
class ComingBack:
    """How long a broken connection is tried again."""

    within_s: float = COME_BACK_WITHIN_S
    longest_wait_s: float = 5.0


class KeptStream:
    """Begins with `request`, a POST whose first event names the stream; goes on with GET and Last-Event-ID."""

    def __init__(self, http: httpx.AsyncClient, request: httpx.Request, coming_back: ComingBack) -> None:
        self._http = http
        self._request = request
        self._coming_back = coming_back
        self._stream_id: str | None = None
        self._last_id = ""
        self._has_ended = False

    async def events(self) -> AsyncGenerator[ServerSentEvent, None]:
        """Up to `done` or `error`. Raises the error of a reply that is no stream, StreamNotFound, ServerUnreachable."""
        response = await self._open_first()
        num_in_vain = 0
        while True:
            before = self._last_id
            broken: httpx.HTTPError | None = None
            try:
                async with contextlib.aclosing(self._read(response)) as events:
                    async for event in events:
                        yield event
            except SSEError:
                raise  # what answers is no stream, and will be none the next time
            except httpx.TransportError as error:
                broken = error
            if self._has_ended:
                return
            broken = broken or httpx.RemoteProtocolError("the stream ended in the middle of the answer")
            num_in_vain = 0 if self._last_id != before else num_in_vain + 1
            if self._stream_id is None or num_in_vain == MAX_CONNECTIONS_IN_VAIN:
                raise unreachable(self._address, broken) from broken
            response = await self._open_again(self._stream_id)

    async def _read(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        source = EventSource(response)
        try:
            async with contextlib.aclosing(source.aiter_sse()) as events:
                async for event in events:
                    if not event.event:
                        continue  # a comment or a change of the retry time
                    self._note(event)
                    yield event
        finally:
            await response.aclose()

    def _note(self, event: ServerSentEvent) -> None:
        self._last_id = event.id
        self._has_ended = event.event in LAST_EVENTS
        if event.event == "start":
            self._stream_id = StartEvent.model_validate_json(event.data, extra="ignore").stream_id

    async def _open_first(self) -> httpx.Response:
        try:
            return await self._open(self._request)
        except httpx.TransportError as error:
            raise unreachable(self._address, error) from error

    async def _open_again(self, stream_id: str) -> httpx.Response:
        """Raises ServerUnreachable when nobody answers for long."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": self._last_id}
        request = self._http.build_request("GET", f"/chat/streams/{stream_id}", headers=headers)
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((httpx.TransportError, PartUnavailable, Overloaded)),
            wait=wait_exponential(0.1, self._coming_back.longest_wait_s),
            stop=stop_after_delay(self._coming_back.within_s),
            reraise=True,
        )
        try:
            return await attempts(self._open, request)
        except httpx.TransportError as error:
            raise unreachable(self._address, error) from error

    async def _open(self, request: httpx.Request) -> httpx.Response:
        response = await self._http.send(request, stream=True)
        if response.is_success:
            return response
        async with contextlib.aclosing(response):
            await response.aread()
        raise error_of(response)

    @property
    def _address(self) -> str:
        return str(self._http.base_url)
