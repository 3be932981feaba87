"""Streams that were asked for with `resumable`: going on with one, and stopping it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from deployments.errors import InvalidRequest, StreamNotFound
from deployments.ingress.schemas import StoppedStream, StreamQuery
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream
from deployments.ingress.tenants import Tenant
from deployments.ingress.turn_events import encode_turn_event

router = APIRouter(prefix="/chat/streams", tags=["chat"])

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Id of the last event that arrived: what comes after it.")
]
MAX_INDEX_DIGITS = 9


@router.get(
    "/{stream_id}",
    response_class=Response,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "The events behind the last one that arrived."},
        204: {"description": "The last event was the end; there is nothing to come back for."},
    },
)
async def get_stream(
    stream_id: str,
    services: Given,
    tenant: Tenant,
    query: Annotated[StreamQuery, Query()],
    last_event_id: LastEventId = None,
) -> Response:
    """Go on with a stream that POST /chat began with `resumable`, from its beginning or behind the last event that
    arrived, through whichever replica. While somebody reads it, generation goes on; without a reader it ends after
    ingress.streams.keep_s. An ended stream can be read again for ingress.streams.retain_s.

    A Last-Event-ID header, which browsers' EventSource sends when it comes back, counts more than `after`.
    """
    after = query.after
    if last_event_id:
        named, after = read_event_id(last_event_id)
        if named != stream_id:
            raise InvalidRequest("the Last-Event-ID header names an event of another stream", "Last-Event-ID")
    return await open_stream(services, tenant, stream_id, after)


@router.post("/{stream_id}/stop")
async def stop_stream(stream_id: str, services: Given, tenant: Tenant) -> StoppedStream:
    """End an answer where it is. What came until then is stored as the answer, and the stream's last event is `done`
    with `finish_reason` "cancelled"; before the first text nothing is stored. Again, and after the end, nothing
    changes.
    """
    await services.streams.stop(tenant, stream_id)
    return StoppedStream(stream_id=stream_id)


async def open_stream(services: Services, tenant: str, stream_id: str, after: int = -1) -> Response:
    """Raises StreamNotFound, InvalidRequest."""
    if not await services.streams.check(tenant, stream_id, after):
        return Response(status_code=204)
    return EventStream(
        (),
        services.streams.follow(tenant, stream_id, after),
        lambda numbered: encode_turn_event(numbered[1], event_id(stream_id, numbered[0])),
        services.config.ingress.turn_timeout_s,
    )


def event_id(stream_id: str, index: int) -> str:
    return f"{stream_id}.{index}"


def read_event_id(given: str) -> tuple[str, int]:
    """Stream and index. Raises StreamNotFound for what is no id of an event that is kept."""
    stream_id, _, index = given.rpartition(".")
    if not stream_id or not (index.isascii() and index.isdecimal() and len(index) <= MAX_INDEX_DIGITS):
        raise StreamNotFound(
            "the Last-Event-ID header names no event of a stream that is kept; streams are kept for those who ask with "
            "resumable",
            "Last-Event-ID",
        )
    return stream_id, int(index)
