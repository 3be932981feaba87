"""The messages of the WebSocket at /ws/chat: what clients send, as pydantic models, and what they get, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import Field, StringConstraints, TypeAdapter

from deployments.errors import InvalidRequest, RetinaError
from deployments.ingress.body import Body
from deployments.ingress.error_replies import shorten
from deployments.ingress.form_body import Form, read_object, to_form
from deployments.ingress.schemas import ChatFields

MAX_TAG_CHARS = 128
Tag = Annotated[str, StringConstraints(max_length=MAX_TAG_CHARS)]


class Tagged(Body):
    id: Tag | None = Field(None, description="The client's own; what answers the message carries it as `tag`.")


class AskMessage(ChatFields, Tagged):
    """Begins a turn; its events come as they do from POST /chat with `resumable`."""

    type: Literal["ask"]


class StopMessage(Tagged):
    """Ends an answer where it is; its `done` event says so."""

    type: Literal["stop"]
    stream_id: str | None = Field(None, description="Left out: the one answer that is under way on this socket.")


class ResumeMessage(Tagged):
    """Goes on with a stream that was begun on another socket, or by POST /chat with `resumable`."""

    type: Literal["resume"]
    stream_id: str
    after: int = Field(-1, ge=-1, description="Index of the last event that arrived; left out: none did.")


class PingMessage(Tagged):
    type: Literal["ping"]


ClientMessage = AskMessage | StopMessage | ResumeMessage | PingMessage
TYPES: Mapping[str, type[ClientMessage]] = {
    "ask": AskMessage,
    "stop": StopMessage,
    "resume": ResumeMessage,
    "ping": PingMessage,
}
_to_json = TypeAdapter(str).dump_json


class BadMessage(Exception):
    """What is wrong with a message, and its tag where that much could be read. Never leaves the socket."""

    def __init__(self, reason: Exception, tag: str | None) -> None:
        super().__init__(reason, tag)
        self.reason = reason
        self.tag = tag


def read_message(text: str) -> Form[ClientMessage]:
    """Raises BadMessage."""
    tag: str | None = None
    try:
        fields = read_object(text.encode(), "message")
        tag = _tag_of(fields)
        return to_form(fields, _model_of(fields))
    except (RetinaError, RequestValidationError) as error:
        raise BadMessage(error, tag) from error


def write_message(event: str, tag: str | None, event_id: str | None = None, data: str | None = None) -> str:
    """`data` is JSON already."""
    fields = {"event": _to_json(event).decode()}
    if event_id is not None:
        fields["id"] = _to_json(event_id).decode()
    if data is not None:
        fields["data"] = data
    if tag is not None:
        fields["tag"] = _to_json(tag).decode()
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def _model_of(fields: Mapping[str, object]) -> type[ClientMessage]:
    given = fields.get("type")
    model = TYPES.get(given) if isinstance(given, str) else None
    if model is None:
        shown = repr(shorten(given)) if isinstance(given, str) else "no text" if "type" in fields else "missing"
        raise InvalidRequest(f"type is {shown}; it must be one of {', '.join(TYPES)}", "type")
    return model


def _tag_of(fields: Mapping[str, object]) -> str | None:
    """One that can be repeated to the client: the model may refuse it."""
    tag = fields.get("id")
    if not isinstance(tag, str) or len(tag) > MAX_TAG_CHARS:
        return None
    try:
        tag.encode()
    except UnicodeEncodeError:
        return None
    return tag
