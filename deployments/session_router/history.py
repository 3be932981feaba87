"""What a session remembers: which messages are kept, which of them are the prompt, and how they become bytes. Pure."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from deployments.session_router.image_policy import carry_picture, keep_newest_picture, without_pictures
from deployments.types import ImagePart, ImageRef, Message, SessionSummary, TextPart, TurnRequest, Usage

CHECKSUM_BYTES = 16
MAX_TITLE_CHARS = 80
NO_USAGE = Usage(prompt_tokens=0, image_tokens=0, reused_tokens=0, completion_tokens=0)


class UnreadableConversation(ValueError):
    """Stored bytes that are no conversation: damaged, or of a format this version does not know."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that committed turns leave behind in one session."""

    messages: tuple[Message, ...] = ()  # of user and assistant, the last is an answer; at most max_messages
    model: str = ""  # answered last
    updated: str = ""  # when the last turn was committed; written as Message.timestamp
    usage: Usage = NO_USAGE  # of all turns ever committed, those that are no longer kept included
    closed_by: str = ""  # lease of the last committed turn: closing it again changes nothing
    format: Literal[1] = 1

    def summary(self, session_id: str, title: str) -> SessionSummary:
        has_image = any(message.images for message in self.messages)
        return SessionSummary(session_id, len(self.messages), has_image, self.model, self.updated, title)


def build_question(text: str, image: ImageRef | None, now_s: float) -> Message:
    parts = (TextPart(text),) if image is None else (ImagePart(image), TextPart(text))
    return Message("user", parts, to_timestamp(now_s))


def build_asked(request: TurnRequest, now_s: float) -> tuple[Message, ...]:
    """What the turn adds to its session, the question last."""
    if not request.input:
        return (build_question(request.text, request.image, now_s),)
    return tuple(replace(message, timestamp=to_timestamp(now_s)) for message in request.input)


def build_answer(text: str, now_s: float) -> Message:
    # Half a surrogate pair, which a hosted model's JSON may hold, cannot be written as UTF-8: it becomes "?".
    return Message("assistant", (TextPart(text.encode("utf-8", "replace").decode()),), to_timestamp(now_s))


def to_prompt(kept: tuple[Message, ...], asked: tuple[Message, ...], max_messages: int) -> tuple[Message, ...]:
    """What the model reads: as much as will be kept once the answer is there, so one message less than the limit.

    All pictures that are asked about are shown, or else the kept one.
    """
    if any(message.images for message in asked):
        kept = without_pictures(kept)
    return _newest((*kept, *asked), max_messages - 1)


def with_answer(prompt: tuple[Message, ...], answer: Message) -> tuple[Message, ...]:
    """What is kept after the turn: its prompt and the answer, with one picture at most."""
    return keep_newest_picture((*prompt, answer))


def _newest(messages: tuple[Message, ...], max_messages: int) -> tuple[Message, ...]:
    """At most that many, from a question on where older ones are dropped, with a picture of theirs."""
    num_dropped = max(0, len(messages) - max_messages)
    while num_dropped and messages[num_dropped].role != "user":
        num_dropped += 1
    return carry_picture(messages[:num_dropped], messages[num_dropped:])


def to_title(messages: tuple[Message, ...]) -> str:
    """The beginning of the first question that has words, in one line; "" when none has."""
    lines = (" ".join(message.text.split()) for message in messages if message.role == "user")
    return next((line[:MAX_TITLE_CHARS].rstrip() for line in lines if line), "")


def add_usage(total: Usage, turn: Usage) -> Usage:
    return Usage(
        prompt_tokens=total.prompt_tokens + turn.prompt_tokens,
        image_tokens=total.image_tokens + turn.image_tokens,
        reused_tokens=total.reused_tokens + turn.reused_tokens,
        completion_tokens=total.completion_tokens + turn.completion_tokens,
    )


def to_timestamp(unix_s: float) -> str:
    """ISO 8601, UTC, milliseconds: "2025-01-01T12:00:00.000Z"."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_bytes(conversation: Conversation) -> bytes:
    """Checksum and JSON."""
    body = _conversations().dump_json(conversation)
    return _checksum(body) + body


def from_bytes(data: bytes) -> Conversation:
    """Raises UnreadableConversation."""
    checksum, body = data[:CHECKSUM_BYTES], data[CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise UnreadableConversation(f"the checksum of {len(data)} stored bytes is wrong")
    try:
        return _conversations().validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise UnreadableConversation(f"stored conversation, {where}: {first['msg']}") from error


@functools.cache
def _conversations() -> TypeAdapter[Conversation]:
    return TypeAdapter(Conversation)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
