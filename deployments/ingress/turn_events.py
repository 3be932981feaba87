"""A turn's events in the shapes that native clients get them in, by server-sent events and by WebSocket."""

from __future__ import annotations

from pydantic import BaseModel

from deployments.ingress.request_id import current_request_id
from deployments.ingress.sampling_schemas import to_bodies
from deployments.ingress.schemas import ChatReply, ChunkEvent, ErrorBody, ErrorReply, StartEvent
from deployments.ingress.sse import encode_event
from deployments.ingress.text_events import encode_piece
from deployments.ingress.turn_types import KeptEvent, TurnChunk, TurnFailed, TurnStarted


def encode_turn_event(event: KeptEvent, event_id: str) -> bytes:
    if isinstance(event, TurnChunk):  # one for every token: the short way
        return encode_piece("chunk", event.text, event.logprobs, event_id)
    name, body = to_named_body(event)
    return encode_event(name, body, event_id)


def to_named_body(event: KeptEvent) -> tuple[str, BaseModel]:
    if isinstance(event, TurnStarted):
        return "start", StartEvent(session_id=event.session_id, model=event.model, stream_id=event.stream_id)
    if isinstance(event, TurnChunk):
        return "chunk", ChunkEvent(text=event.text, logprobs=to_bodies(event.logprobs) if event.logprobs else None)
    if isinstance(event, TurnFailed):
        body = ErrorBody(code=event.code, message=event.message, param=event.param, request_id=current_request_id())
        return "error", ErrorReply(error=body)
    return "done", ChatReply.from_turn(event.reply)
