"""POST /chat: a question, perhaps with a picture; the answer in one piece or streamed."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from deployments.ingress.connection import run_while_connected
from deployments.ingress.form_body import Form, check_text, document_body, read_form
from deployments.ingress.request_id import current_request_id
from deployments.ingress.schemas import ChatReply, ChatRequest, StartEvent
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream, encode_event, open_events
from deployments.ingress.tenants import Tenant
from deployments.ingress.text_events import encode_piece
from deployments.ingress.turns import TurnChunk, TurnEvent, TurnInput, TurnStarted

router = APIRouter(tags=["chat"])

EXAMPLE_EVENTS = (
    'event: start\ndata: {"session_id":"…","model":"…"}\n\n'
    'event: chunk\ndata: {"text":"A red"}\n\n'
    "event: done\ndata: {…the plain reply…}\n\n"
)


@router.post(
    "/chat",
    response_model=ChatReply,
    responses={200: {"content": {"text/event-stream": {"example": EXAMPLE_EVENTS}}}},
    openapi_extra={"requestBody": document_body(ChatRequest)},
)
async def chat(request: Request, services: Given, tenant: Tenant) -> ChatReply | Response:
    """Ask. With `stream` the reply is server-sent events: `start`, one `chunk` per piece of text, and `done` with the
    same object as the plain reply; or `error` as the last event, and then the session stays as it was. With `logprobs`
    each `chunk` has those of its tokens, and the reply has all.

    Fields that are unknown or given twice are refused. A client that leaves cancels its turn.
    """
    form = await read_form(request, ChatRequest, services.config.ingress)
    check_text("message", form.asked.message, services.config.ingress)  # the session_router has the rule, too
    return await run_while_connected(request.receive, _answer(form, services, tenant))


async def _answer(form: Form[ChatRequest], services: Services, tenant: str) -> ChatReply | Response:
    turn = await _to_turn(form, services, tenant)
    if not form.asked.stream:
        return ChatReply.from_turn(await services.turns.reply(turn))
    events = services.turns.stream(turn)
    opening = await open_events(events)
    return EventStream(opening, events, _encode, services.config.ingress.turn_timeout_s)


async def _to_turn(form: Form[ChatRequest], services: Services, tenant: str) -> TurnInput:
    asked = form.asked
    image = await services.pictures.take(tenant, form.picture, asked.image_id)
    return TurnInput(
        request_id=current_request_id(),
        tenant=tenant,
        text=asked.message,
        session_id=asked.session_id,
        image=image,
        model=asked.model,
        sampling=asked.to_sampling(),
    )


def _encode(event: TurnEvent) -> bytes:
    if isinstance(event, TurnStarted):
        return encode_event("start", StartEvent(session_id=event.session_id, model=event.model))
    if isinstance(event, TurnChunk):
        return encode_piece("chunk", event.text, event.logprobs)
    return encode_event("done", ChatReply.from_turn(event.reply))
