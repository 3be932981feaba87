"""POST /chat: a question, perhaps with a picture; the answer in one piece or streamed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from deployments.errors import InvalidRequest
from deployments.ingress.chat_input import to_turn_input
from deployments.ingress.connection import run_while_connected
from deployments.ingress.form_body import Form, document_body, read_form
from deployments.ingress.schemas import ChatReply, ChatRequest
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream, RunningIds, open_events
from deployments.ingress.stream_routes import LastEventId, open_stream, read_event_id
from deployments.ingress.tenants import Tenant
from deployments.ingress.turn_events import encode_turn_event

router = APIRouter(tags=["chat"])

EXAMPLE_EVENTS = (
    'event: start\ndata: {"session_id":"…","model":"…"}\nid: 0\n\n'
    'event: chunk\ndata: {"text":"A red"}\nid: 1\n\n'
    "event: done\ndata: {…the plain reply…}\nid: 2\n\n"
)


@router.post(
    "/chat",
    response_model=ChatReply,
    responses={200: {"content": {"text/event-stream": {"example": EXAMPLE_EVENTS}}}},
    openapi_extra={"requestBody": document_body(ChatRequest)},
)
async def chat(
    request: Request, services: Given, tenant: Tenant, last_event_id: LastEventId = None
) -> ChatReply | Response:
    """Ask. With `stream` the reply is server-sent events: `start`, one `chunk` per piece of text, and `done` with the
    same object as the plain reply; or `error` as the last event, and then the session stays as it was. With `logprobs`
    each `chunk` has those of its tokens, and the reply has all.

    Fields that are unknown or given twice are refused. A client that leaves cancels its turn.

    With `resumable` it does not: `start` comes as soon as the turn is open and has a `stream_id`, by which any client
    of the tenant goes on with the stream or stops it. The Content-Location header is the stream's own address. A
    request with the Last-Event-ID of such a stream goes on with it, too, whatever its body is, and begins no turn.
    """
    if last_event_id:
        await request.body()  # what watches for the client's leaving must not meet it
        return await open_stream(services, tenant, *read_event_id(last_event_id))
    form = await read_form(request, ChatRequest, services.config.ingress)
    if form.asked.resumable and not form.asked.stream:
        raise InvalidRequest("resumable is for streams; send stream with it", "resumable")
    return await run_while_connected(request.receive, _answer(form, services, tenant))


async def _answer(form: Form[ChatRequest], services: Services, tenant: str) -> ChatReply | Response:
    turn = await to_turn_input(form.asked, form.picture, services, tenant)
    if not form.asked.stream:
        return ChatReply.from_turn(await services.turns.reply(turn))
    if form.asked.resumable:
        return await _open_kept(services, tenant, await services.streams.begin(turn))
    events = services.turns.stream(turn)
    opening = await open_events(events)
    ids = RunningIds()
    return EventStream(
        opening,
        events,
        lambda event: encode_turn_event(event, ids.next()),
        services.config.ingress.turn_timeout_s,
        ids,
    )


async def _open_kept(services: Services, tenant: str, stream_id: str) -> Response:
    reply = await open_stream(services, tenant, stream_id)
    reply.headers["Content-Location"] = f"chat/streams/{stream_id}"  # relative: there may be a prefix before /chat
    return reply
