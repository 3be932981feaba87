"""POST /caption, /query, /detect and /point: one task about one picture, without a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from deployments.ingress.connection import run_while_connected
from deployments.ingress.form_body import Form, check_text, document_body, read_form
from deployments.ingress.model_choice import choose_model
from deployments.ingress.request_id import current_request_id
from deployments.ingress.services import Given, Services
from deployments.ingress.sse import EventStream, RunningIds, encode_event, open_events
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
from deployments.ingress.task_types import TaskChunk, TaskEvent, TaskInput, TaskReply, TaskStarted
from deployments.ingress.tenants import Tenant
from deployments.ingress.text_events import encode_piece
from deployments.types import SKILL_OF, Box

router = APIRouter(tags=["vision"])

Reply = TypeVar("Reply", bound=BaseModel)
ToReply = Callable[[TaskInput, TaskReply], Reply]

START = 'event: start\ndata: {"model":"…","image_id":"…"}\n'
DONE = "event: done\ndata: {…the plain reply…}\n"
CHUNK = 'event: chunk\ndata: {"text":"A red"}\n'
THOUGHT = 'event: thought\ndata: {"text":"The picture shows"}\n'
OBJECT = 'event: object\ndata: {"x_min":0.1,"y_min":0.2,"x_max":0.4,"y_max":0.5}\n'
POINT = 'event: point\ndata: {"x":0.25,"y":0.35}\n'


def _streamed(*events: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI of the reply when it is streamed."""
    numbered = "".join(f"{event}id: {index}\n\n" for index, event in enumerate([START, *events, DONE]))
    return {200: {"content": {"text/event-stream": {"example": numbered}}}}


@router.post(
    "/caption",
    response_model=CaptionReply,
    responses=_streamed(CHUNK),
    openapi_extra={"requestBody": document_body(CaptionRequest)},
)
async def caption(request: Request, services: Given, tenant: Tenant) -> CaptionReply | Response:
    """Describe a picture. With `stream` the reply is server-sent events: `start`, one `chunk` per piece of text, and
    `done` with the same object as the plain reply; or `error` as the last event.

    Fields that are unknown or given twice are refused, and so is a model that cannot do this, with those that can.
    A client that leaves cancels its request.
    """
    return await _serve(request, services, tenant, CaptionRequest, CaptionReply.from_task)


@router.post(
    "/query",
    response_model=QueryReply,
    responses=_streamed(THOUGHT, CHUNK),
    openapi_extra={"requestBody": document_body(QueryRequest)},
)
async def query(request: Request, services: Given, tenant: Tenant) -> QueryReply | Response:
    """Answer one question about a picture, or without one. As POST /caption; with `reasoning` there are `thought`
    events before the `chunk` events.
    """
    return await _serve(request, services, tenant, QueryRequest, QueryReply.from_task)


@router.post(
    "/detect",
    response_model=DetectReply,
    responses=_streamed(OBJECT),
    openapi_extra={"requestBody": document_body(DetectRequest)},
)
async def detect(request: Request, services: Given, tenant: Tenant) -> DetectReply | Response:
    """Find boxes around the objects of a kind. As POST /caption, with one `object` event per box."""
    return await _serve(request, services, tenant, DetectRequest, DetectReply.from_task)


@router.post(
    "/point",
    response_model=PointReply,
    responses=_streamed(POINT),
    openapi_extra={"requestBody": document_body(PointRequest)},
)
async def point(request: Request, services: Given, tenant: Tenant) -> PointReply | Response:
    """Find a point on each of the objects of a kind. As POST /caption, with one `point` event each."""
    return await _serve(request, services, tenant, PointRequest, PointReply.from_task)


# ------------------------------------------------------------------------------------- what they have in common


async def _serve(
    request: Request, services: Services, tenant: str, model: type[PictureFields], to_reply: ToReply[Reply]
) -> Reply | Response:
    form = await read_form(request, model, services.config.ingress)
    return await run_while_connected(request.receive, _answer(form, services, tenant, to_reply))


async def _answer(
    form: Form[PictureFields], services: Services, tenant: str, to_reply: ToReply[Reply]
) -> Reply | Response:
    asked = await _to_input(form, services, tenant)
    if not form.asked.stream:
        return to_reply(asked, await services.tasks.reply(asked))
    events = services.tasks.stream(asked)
    opening = await open_events(events)
    ids = RunningIds()
    return EventStream(
        opening,
        events,
        lambda event: _encode(event, asked, to_reply, ids),
        services.config.ingress.turn_timeout_s,
        ids,
    )


async def _to_input(form: Form[PictureFields], services: Services, tenant: str) -> TaskInput:
    """What can be refused without the picture is refused before it is decoded and stored."""
    asked = form.asked
    for name, text in asked.texts.items():
        if text is not None:
            check_text(name, text, services.config.ingress)
    task = asked.to_task()
    model = choose_model(services.config, SKILL_OF[type(task)], asked.model)
    return TaskInput(
        request_id=current_request_id(),
        tenant=tenant,
        task=task,
        image=await services.pictures.take(tenant, form.picture, asked.image_id),
        model=model,
        sampling=asked.to_sampling(),
    )


def _encode(event: TaskEvent, asked: TaskInput, to_reply: ToReply[Reply], ids: RunningIds) -> bytes:
    if isinstance(event, TaskStarted):
        image_id = asked.image.id if asked.image is not None else None
        return encode_event("start", TaskStartEvent(model=event.model, image_id=image_id), ids.next())
    if isinstance(event, TaskChunk):
        return _encode_chunk(event, ids)
    return encode_event("done", to_reply(asked, event.reply), ids.next())


def _encode_chunk(chunk: TaskChunk, ids: RunningIds) -> bytes:
    if chunk.thought:
        return encode_piece("thought", chunk.thought, chunk.logprobs, ids.next())
    if chunk.text or chunk.logprobs:
        return encode_piece("chunk", chunk.text, chunk.logprobs, ids.next())
    return b"".join(
        encode_event("object", BoxBody.from_box(found), ids.next())
        if isinstance(found, Box)
        else encode_event("point", PointBody.from_point(found), ids.next())
        for found in chunk.found
    )
