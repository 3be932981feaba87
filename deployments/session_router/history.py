"""What a session remembers: which messages are kept, which of them are the prompt, and how they become bytes. Pure."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from deployments.session_router.image_policy import carry_picture, keep_newest_picture
from deployments.types import ImagePart, ImageRef, Message, SessionSummary, TextPart, Usage

CHECKSUM_BYTES = 16
NO_USAGE = Usage(prompt_tokens=0, image_tokens=0, reused_tokens=0, completion_tokens=0)


class UnreadableConversation(ValueError):
    """Stored bytes that are no conversation: damaged, or of a format this version does not know."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """All that committed turns leave behind in one session."""

    messages: tuple[Message, ...] = ()  # user, assistant, user, ...; at most max_messages
    model: str = ""  # answered last
    updated: str = ""  # when the last turn was committed; written as Message.timestamp
    usage: Usage = NO_USAGE  # of all turns ever committed, those that are no longer kept included
    closed_by: str = ""  # lease of the last committed turn: closing it again changes nothing
    format: Literal[1] = 1

    def summary(self, session_id: str) -> SessionSummary:
        has_image = any(message.images for message in self.messages)
        return SessionSummary(session_id, len(self.messages), has_image, self.model, self.updated)


def build_question(text: str, image: ImageRef | None, now_s: float) -> Message:
    parts = (TextPart(text),) if image is None else (ImagePart(image), TextPart(text))
    return Message("user", parts, to_timestamp(now_s))


def build_answer(text: str, now_s: float) -> Message:
    # Half a surrogate pair, which a hosted model's JSON may hold, cannot be written as UTF-8: it becomes "?".
    return Message("assistant", (TextPart(text.encode("utf-8", "replace").decode()),), to_timestamp(now_s))


def to_prompt(kept: tuple[Message, ...], question: Message, max_messages: int) -> tuple[Message, ...]:
    """What the model reads: as much as will be kept once the answer is there, so one message less than the limit."""
    return _trim((*kept, question), max_messages - 1)


def with_exchange(
    kept: tuple[Message, ...], question: Message, answer: Message, max_messages: int
) -> tuple[Message, ...]:
    """What is kept after the turn. Equal to its prompt and the answer."""
    return _trim((*kept, question, answer), max_messages)


def _trim(messages: tuple[Message, ...], max_messages: int) -> tuple[Message, ...]:
    """The newest messages, from a question on, with the session's one picture among them."""
    messages = keep_newest_picture(messages)
    num_dropped = max(0, len(messages) - max_messages)
    return carry_picture(messages[:num_dropped], messages[num_dropped:])


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
