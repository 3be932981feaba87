"""POST /chat: a question, perhaps with a picture; the answer in one piece or streamed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from deployments.ingress.chat_form import ChatForm, read_chat_form
from deployments.ingress.connection import run_while_connected
from deployments.ingress.request_id import current_request_id
from deployments.ingress.schemas import ChatReply, ChatRequest
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream, open_events
from deployments.ingress.tenants import Tenant
from deployments.ingress.turns import TurnInput

router = APIRouter(tags=["chat"])

EXAMPLE_EVENTS = (
    'event: start\ndata: {"session_id":"…","model":"…"}\n\n'
    'event: chunk\ndata: {"text":"A red"}\n\n'
    "event: done\ndata: {…the plain reply…}\n\n"
)


def _request_body() -> dict[str, Any]:
    """OpenAPI of the body, which the route reads by itself."""
    schema = ChatRequest.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "The picture's file."}
    multipart = {**schema, "properties": {**schema["properties"], "image": file}}
    urlencoded = {**schema, "properties": {k: v for k, v in schema["properties"].items() if k != "image"}}
    content = {
        "multipart/form-data": {"schema": multipart},
        "application/json": {"schema": schema},
        "application/x-www-form-urlencoded": {"schema": urlencoded},
    }
    return {"required": True, "content": content}


@router.post(
    "/chat",
    response_model=ChatReply,
    responses={200: {"content": {"text/event-stream": {"example": EXAMPLE_EVENTS}}}},
    openapi_extra={"requestBody": _request_body()},
)
async def chat(request: Request, services: Given, tenant: Tenant) -> ChatReply | Response:
    """Ask. With `stream` the reply is server-sent events: `start`, one `chunk` per piece of text, and `done` with the
    same object as the plain reply; or `error` as the last event, and then the session stays as it was.

    Fields that are unknown or given twice are refused. A client that leaves cancels its turn.
    """
    form = await read_chat_form(request, services.config.ingress)
    return await run_while_connected(request.receive, _answer(form, services, tenant))


async def _answer(form: ChatForm, services: Services, tenant: str) -> ChatReply | Response:
    turn = await _to_turn(form, services, tenant)
    if not form.asked.stream:
        return ChatReply.from_turn(await services.turns.reply(turn))
    events = services.turns.stream(turn)
    opening = await open_events(events)
    return EventStream(opening, events, services.config.ingress.turn_timeout_s)


async def _to_turn(form: ChatForm, services: Services, tenant: str) -> TurnInput:
    asked = form.asked
    image = None
    if form.picture is not None:
        image = await services.pictures.add(tenant, form.picture)
    elif asked.image_id is not None:
        image = await services.pictures.find(tenant, asked.image_id)
    return TurnInput(
        request_id=current_request_id(),
        tenant=tenant,
        text=asked.message,
        session_id=asked.session_id,
        image=image,
        model=asked.model,
        sampling=asked.to_sampling(),
    )
