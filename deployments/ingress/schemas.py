"""The bodies that HTTP clients send and get, as pydantic models; OpenAPI is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from deployments.ingress.body import Body
from deployments.ingress.sampling_schemas import Logprobs, SamplingFields, to_bodies
from deployments.ingress.turn_types import TurnEnd, TurnReply
from deployments.prices import to_json_number
from deployments.types import (
    EncodeSource,
    ImageRef,
    Message,
    Role,
    SessionSummary,
    TextPart,
    Timings,
    Usage,
)

STREAM = "Answer with server-sent events. The Accept header plays no part."
# ------------------------------------------------------------------------------------- what answers have in common
# pydantic lists the fields of the last base class first.


class UsageBody(Body):
    prompt_tokens: int = Field(description="Image tokens included.")
    image_tokens: int
    reused_tokens: int = Field(description="Of prompt_tokens, those that did not have to be computed again.")
    completion_tokens: int

    @classmethod
    def from_usage(cls, usage: Usage) -> UsageBody:
        return cls.model_validate(usage, from_attributes=True)


class TimingsBody(Body):
    """Milliseconds, measured by the generator."""

    queue_ms: float
    encode_ms: float = Field(description="Wait for the picture's features; 0 without picture.")
    prefill_ms: float
    decode_ms: float = Field(description="First token to last token.")
    first_token_ms: float
    encode_source: EncodeSource | None = Field(description="Where the features came from; null without picture.")

    @classmethod
    def from_timings(cls, timings: Timings) -> TimingsBody:
        return cls.model_validate(timings, from_attributes=True)


Cost = Annotated[
    float | None,
    Field(description="By `models[].prices` of the configuration, to 15 significant digits; null without prices."),
]


# ------------------------------------------------------------------------------------- POST /chat


class ChatQuestion(Body):
    message: str = Field(description="The question.")
    image: str | None = Field(
        None,
        description="A picture as a data URL (in multipart: the file itself). It replaces the session's picture. "
        "The bytes decide what it is, not the declared type; other URLs are not fetched.",
    )
    image_id: str | None = Field(None, description="A picture uploaded with POST /images, instead of `image`.")
    session_id: str | None = Field(None, description="Go on with this session, or begin it. Left out: a new one.")
    model: str | None = Field(None, description="Left out: the model that the session used last, or the default.")


class StreamChoice(Body):
    stream: bool = Field(False, description=STREAM)
    resumable: bool = Field(
        False,
        description="With `stream`: keep the events, so that a client that lost the connection goes on where it was "
        "(GET /chat/streams/{stream_id}) and can stop the answer (POST /chat/streams/{stream_id}/stop). Leaving then "
        "does not cancel the turn at once.",
    )


class ChatFields(SamplingFields, ChatQuestion):
    """What is asked, by whichever way."""


class ChatRequest(StreamChoice, ChatFields):
    """A question, perhaps about a picture, in a session or starting one."""


class ChatReply(Body):
    message: str = Field(description="The question.")
    response: str = Field(description="The answer: the texts of all `chunk` events, joined.")
    has_image: bool = Field(description="The model saw a picture in this turn: a new one, or the session's.")
    model_used: str
    session_id: str
    conversation_length: int = Field(description="Messages kept in the session, this exchange included.")
    usage: UsageBody
    cost: Cost
    timings: TimingsBody
    finish_reason: TurnEnd = Field(
        description="`length`: max_new_tokens or the context was full. `cancelled`: the answer was stopped."
    )
    logprobs: Logprobs = None

    @classmethod
    def from_turn(cls, reply: TurnReply) -> ChatReply:
        return cls(
            message=reply.message,
            response=reply.response,
            has_image=reply.has_image,
            model_used=reply.model_used,
            session_id=reply.session_id,
            conversation_length=reply.conversation_length,
            usage=UsageBody.from_usage(reply.usage),
            cost=to_json_number(reply.cost),
            timings=TimingsBody.from_timings(reply.timings),
            finish_reason=reply.finish_reason,
            logprobs=to_bodies(reply.logprobs),
        )


class StartEvent(Body):
    session_id: str
    model: str
    stream_id: str | None = Field(
        None, description="Of a stream that is kept.", exclude_if=lambda stream_id: stream_id is None
    )


class ChunkEvent(Body):
    text: str
    logprobs: Logprobs = None


class StreamQuery(Body):
    after: int = Field(-1, ge=-1, description="Index of the last event that arrived; left out: none did.")


class StoppedStream(Body):
    stream_id: str


# ------------------------------------------------------------------------------------- sessions


class ImageContent(Body):
    type: Literal["image"] = "image"


class TextContent(Body):
    type: Literal["text"] = "text"
    text: str


class HistoryMessage(Body):
    role: Role
    content: list[ImageContent | TextContent]
    timestamp: str = Field(description="ISO 8601, UTC, milliseconds.")

    @classmethod
    def from_message(cls, message: Message) -> HistoryMessage:
        content = [TextContent(text=p.text) if isinstance(p, TextPart) else ImageContent() for p in message.content]
        return cls(role=message.role, content=content, timestamp=message.timestamp)


class HistoryReply(Body):
    session_id: str
    history: list[HistoryMessage] = Field(description="Oldest first.")
    length: int
    image_id: str | None = Field(description="Of the session's picture, for GET /images/{id}; null without one.")

    @classmethod
    def from_messages(cls, session_id: str, messages: Sequence[Message]) -> HistoryReply:
        history = [HistoryMessage.from_message(message) for message in messages]
        images = [image.id for message in messages for image in message.images]  # a session keeps one at most
        return cls(session_id=session_id, history=history, length=len(history), image_id=images[-1] if images else None)


class DeletedSession(Body):
    session_id: str
    deleted: Literal[True] = True


class SessionBody(Body):
    session_id: str
    length: int
    has_image: bool
    model: str
    updated: str
    title: str = Field(description="Beginning of the session's first question.")

    @classmethod
    def from_summary(cls, summary: SessionSummary) -> SessionBody:
        return cls(
            session_id=summary.session_id,
            length=summary.length,
            has_image=summary.has_image,
            model=summary.model,
            updated=summary.updated,
            title=summary.title,
        )


class SessionsQuery(Body):
    limit: int | None = Field(
        None, ge=1, description="At most so many; left out: as many as ingress.max_listed_sessions allows."
    )


class SessionsReply(Body):
    sessions: list[SessionBody] = Field(description="Last used first.")
    count: int = Field(description="Of the sessions listed here.")
    has_more: bool = Field(description="There are sessions that were used before these.")


# ------------------------------------------------------------------------------------- pictures


class ImageReply(Body):
    id: str = Field(description="For `image_id` of POST /chat.")
    width: int = Field(description="px, upright.")
    height: int
    num_bytes: int
    media_type: str

    @classmethod
    def from_ref(cls, ref: ImageRef) -> ImageReply:
        return cls(id=ref.id, width=ref.width, height=ref.height, num_bytes=ref.num_bytes, media_type=ref.media_type)


class DeletedImage(Body):
    id: str
    deleted: Literal[True] = True


# ------------------------------------------------------------------------------------- the rest


class ErrorBody(Body):
    code: str
    message: str
    param: str | None = Field(description="The field at fault.")
    request_id: str


class ErrorReply(Body):
    error: ErrorBody


class HealthReply(Body):
    status: Literal["ok"] = "ok"


class ReadyReply(Body):
    ready: bool
    parts: dict[str, bool | str] = Field(description="By part: true, or what keeps it from being ready.")
