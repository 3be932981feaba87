"""/v1/responses: create, get, stream again, cancel, delete, and list what was asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.responses import Response

from deployments.errors import InvalidRequest
from deployments.ingress.body import Body
from deployments.ingress.connection import run_while_connected
from deployments.ingress.openai.error_shape import ERRORS, PREFIX
from deployments.ingress.openai.json_body import document_json, read_json
from deployments.ingress.openai.refusing import refusing
from deployments.ingress.responses.creation import create_response, stream_kept
from deployments.ingress.responses.request import CreateResponse
from deployments.ingress.responses.resource import DeletedResponse, ItemList, ResponseBody
from deployments.ingress.responses.retrieval import (
    ItemsQuery,
    cancel_response,
    current_response,
    delete_response,
    list_items,
    require_events,
)
from deployments.ingress.responses.states import reopened
from deployments.ingress.services import Given
from deployments.ingress.tenants import Tenant

router = APIRouter(prefix=f"{PREFIX}/responses", tags=["responses"], responses=ERRORS)

EXAMPLE_EVENTS = (
    'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{…}}\nid: 0\n\n'
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,'
    '"item_id":"msg_…","output_index":0,"content_index":0,"delta":"A red","logprobs":[]}\nid: 4\n\n'
    'event: response.completed\ndata: {"type":"response.completed","sequence_number":9,"response":{…}}\nid: 9\n\n'
    "data: [DONE]\n\n"
)
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"example": EXAMPLE_EVENTS}}}}


class GetQuery(Body):
    stream: bool = Field(False, description="Its events again, and those that are still to come.")
    starting_after: int | None = Field(None, ge=0, description="Only events behind this sequence number.")
    include_obfuscation: Annotated[
        Literal["false"] | None, refusing("streams are not padded with obfuscation here", "false")
    ] = None


@router.post(
    "",
    response_model=ResponseBody,
    responses=STREAMED,
    openapi_extra={"requestBody": document_json(CreateResponse)},
)
async def create(request: Request, services: Given, tenant: Tenant) -> ResponseBody | Response:
    """Answer a message, as the Open Responses specification has it. A response is stored, in a new conversation if it
    goes on from nothing; its `conversation.id` is the session_id that POST /chat goes on with.

    With `stream` the reply is server-sent events: `response.created`, `response.in_progress`,
    `response.output_item.added`, `response.content_part.added`, `response.output_text.delta` for each piece of text,
    `response.output_text.done`, `response.content_part.done`, `response.output_item.done`, and `response.completed`,
    or `response.incomplete` where the answer was cut off; then `[DONE]`. What goes wrong in the middle is told by
    `error` and `response.failed`. Each event's `id` is its sequence number.

    Fields that are unknown, and values that could change nothing, are refused. Without `temperature` answers are
    greedy: the same question gets the same answer as in POST /chat. A client that leaves cancels its response, unless
    it asked for `background` or `resumable`; of a response that is cancelled so, or that fails, nothing is stored.
    """
    asked = await read_json(request, CreateResponse)
    return await run_while_connected(request.receive, create_response(asked, services, tenant))


@router.get("/{response_id}", response_model=ResponseBody, responses=STREAMED)
async def get(
    response_id: str,
    query: Annotated[GetQuery, Query()],
    services: Given,
    tenant: Tenant,
    last_event_id: Annotated[str | None, Header(description="As `starting_after`; the larger one counts.")] = None,
) -> ResponseBody | Response:
    """A stored response. With `stream` its events, if it was created with `background` or `resumable`, and for as long
    as they are kept.
    """
    if not query.stream:
        if query.starting_after is not None:
            raise InvalidRequest("starting_after is for stream=true", "starting_after")
        return (await current_response(response_id, services, tenant)).response
    after = max(_read_event_id(last_event_id), -1 if query.starting_after is None else query.starting_after)
    stored = await require_events(response_id, services, tenant)
    return stream_kept(reopened(stored.response), services, tenant, after)


@router.delete("/{response_id}")
async def delete(response_id: str, services: Given, tenant: Tenant) -> DeletedResponse:
    """Forget a response; one that is under way is stopped. Its conversation stays."""
    await delete_response(response_id, services, tenant)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel")
async def cancel(response_id: str, services: Given, tenant: Tenant) -> ResponseBody:
    """Stop a response that was created with `background` or `resumable`. What was said until then stays in its
    conversation. One that has ended already is told as it is.
    """
    return (await cancel_response(response_id, services, tenant)).response


@router.get("/{response_id}/input_items")
async def input_items(
    response_id: str, query: Annotated[ItemsQuery, Query()], services: Given, tenant: Tenant
) -> ItemList:
    """What the response was asked."""
    stored = await current_response(response_id, services, tenant)
    return list_items(stored, query.limit, query.after, oldest_first=query.order == "asc")


def _read_event_id(given: str | None) -> int:
    if not given:
        return -1
    if not (given.isascii() and given.isdecimal() and len(given) <= 9):
        raise InvalidRequest("the header Last-Event-ID is not the id of an event of this stream", "Last-Event-ID")
    return int(given)
