"""Stored responses: how they stand, read again, stopped, deleted, and what they were asked."""

from __future__ import annotations

import contextlib
from typing import Literal

from pydantic import Field

from deployments.errors import InvalidRequest, PartUnavailable, RecordNotFound, StreamNotFound
from deployments.ingress.body import Body
from deployments.ingress.error_replies import shorten
from deployments.ingress.responses.resource import ItemBody, ItemList, ResponseBody
from deployments.ingress.responses.states import Outcome, answered, failed, failure_of
from deployments.ingress.responses.stored import StoredResponse
from deployments.ingress.services import Services
from deployments.ingress.turn_types import KeptEvent, TurnFailed, TurnFinished
from deployments.record_types import Record

LOST = PartUnavailable("what became of this response is not known: it was lost, or nobody asked for it in time")
EVENTS_GONE = "the events of this response are not kept, or not any more; get it without stream"


class ItemsQuery(Body):
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = Field("desc", description="`desc`: the last item first.")
    after: str | None = Field(None, description="Only items behind this one in the order asked for.")


async def current_response(response_id: str, services: Services, tenant: str) -> StoredResponse:
    """As it stands now. Raises RecordNotFound."""
    stored = await _read(response_id, services, tenant)
    if stored.response.status != "in_progress":
        return stored
    try:
        last = await services.streams.ending(tenant, response_id)
    except StreamNotFound:
        last = failure_of(LOST)
    return stored if last is None else await _conclude(stored, last, services, tenant)


async def require_events(response_id: str, services: Services, tenant: str) -> StoredResponse:
    """Raises RecordNotFound, and StreamNotFound where its events cannot be read again."""
    stored = await _read(response_id, services, tenant)
    try:
        await services.streams.ending(tenant, response_id)
    except StreamNotFound as error:
        raise StreamNotFound(EVENTS_GONE, "stream") from error
    return stored


async def cancel_response(response_id: str, services: Services, tenant: str) -> StoredResponse:
    """Stopped where it is, or as it ended before. Raises RecordNotFound, and InvalidRequest where it cannot be stopped
    by its id.
    """
    stored = await _read(response_id, services, tenant)
    if not stored.is_kept:
        raise InvalidRequest(
            "only responses with background: true or resumable: true can be cancelled; others are by closing the "
            "connection",
            "response_id",
        )
    if stored.response.status == "in_progress":
        await _stop(response_id, services, tenant)
    return await current_response(response_id, services, tenant)


async def delete_response(response_id: str, services: Services, tenant: str) -> None:
    """A damaged one, too; its conversation stays. Raises RecordNotFound."""
    await _find(response_id, services, tenant)
    await _stop(response_id, services, tenant)
    await services.records.delete_record(tenant, "response", response_id)


def list_items(stored: StoredResponse, limit: int, after: str | None, *, oldest_first: bool) -> ItemList:
    """Raises RecordNotFound for `after`."""
    items = [item.to_body() for item in stored.input]
    if not oldest_first:
        items.reverse()
    return to_page(items, limit, after)


def to_page(items: list[ItemBody], limit: int, after: str | None) -> ItemList:
    """Raises RecordNotFound for `after`."""
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise RecordNotFound(f"there is no item {shorten(after)!r} in this list", "after")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return ItemList(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(items) > limit,
    )


async def _read(response_id: str, services: Services, tenant: str) -> StoredResponse:
    return StoredResponse.from_record(await _find(response_id, services, tenant))


async def _find(response_id: str, services: Services, tenant: str) -> Record:
    try:
        return await services.records.record(tenant, "response", response_id)
    except RecordNotFound as error:
        raise RecordNotFound(f"there is no response {shorten(response_id)!r}", "response_id") from error


async def _stop(response_id: str, services: Services, tenant: str) -> None:
    """Returns when its last event is there; at once where there is no stream of it."""
    with contextlib.suppress(StreamNotFound):
        await services.streams.stop(tenant, response_id)
        async with contextlib.aclosing(services.streams.follow(tenant, response_id)) as events:
            async for _ in events:
                pass


async def _conclude(stored: StoredResponse, last: KeptEvent, services: Services, tenant: str) -> StoredResponse:
    """An answer is stored together with its turn; that there is none is found out here."""
    now = await _read(stored.response.id, services, tenant)
    if now.response.status != "in_progress":
        return now
    concluded = stored.model_copy(update={"response": _without_answer(stored, last)})
    await services.records.put_record(tenant, concluded.to_record())
    return concluded


def _without_answer(stored: StoredResponse, last: KeptEvent) -> ResponseBody:
    if isinstance(last, TurnFinished):  # stopped before its first word
        return answered(stored.response, Outcome.of_turn(last.reply))
    assert isinstance(last, TurnFailed)
    return failed(stored.response, last)
