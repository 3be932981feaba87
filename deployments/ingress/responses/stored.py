"""A response as a record: what was asked, what was answered, and what those who go on from it must know. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ValidationError

from deployments.errors import RetinaError
from deployments.ingress.body import Body
from deployments.ingress.responses.resource import (
    Detail,
    InputImageBody,
    InputMessageBody,
    InputTextBody,
    ItemBody,
    OutputMessage,
    OutputText,
    ResponseBody,
)
from deployments.record_types import Record
from deployments.types import ImagePart, ImageRef, Message, TextPart


@dataclass(frozen=True, slots=True)
class GivenPicture:
    image: ImageRef
    file_id: str  # as it was given, or the image's own id
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True)
class StoredItem:
    """A message of the input."""

    id: str
    role: Literal["user", "assistant", "system", "developer"]
    content: tuple[TextPart | GivenPicture, ...]

    @property
    def is_guidance(self) -> bool:
        """Told beside the conversation."""
        return self.role in ("system", "developer")

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    def to_message(self) -> Message:
        parts = tuple(ImagePart(part.image) if isinstance(part, GivenPicture) else part for part in self.content)
        if self.role == "user" or self.role == "assistant":
            return Message(self.role, parts)
        return Message("system", parts)

    def to_body(self) -> ItemBody:
        if self.role == "assistant":
            texts = [OutputText(text=part.text) for part in self.content if isinstance(part, TextPart)]
            return OutputMessage(id=self.id, status="completed", content=texts)
        return InputMessageBody(id=self.id, role=self.role, content=[_to_body(part) for part in self.content])


class StoredResponse(Body):
    """The body of its record; of a draft, too, which has no answer yet."""

    format: Literal[1] = 1
    response: ResponseBody
    input: tuple[StoredItem, ...]
    guidance: tuple[str, ...] = ()  # what system and developer items said, of this response and those before it
    context: tuple[Message, ...] = ()  # what was said up to and including the answer; empty without one
    lease: str = ""  # of the turn that gave the answer; empty without one
    expires_s: float  # Unix time
    is_kept: bool  # it was asked for in a way that keeps its events

    def to_record(self) -> Record:
        return Record(
            "response", self.response.id, self.response.created_at, self.model_dump_json(by_alias=True), self.expires_s
        )

    @classmethod
    def from_record(cls, record: Record) -> StoredResponse:
        """Raises RetinaError for a damaged one."""
        try:
            return cls.model_validate_json(record.body)
        except ValidationError as error:
            raise RetinaError(f"the record of response {record.id} is damaged; delete it", "response_id") from error

    def find_item(self, item_id: str) -> StoredItem | None:
        """Of the input or of the output."""
        given = next((item for item in self.input if item.id == item_id), None)
        if given is not None:
            return given
        said = next((item for item in self.response.output if item.id == item_id), None)
        if said is None:
            return None
        return StoredItem(said.id, "assistant", tuple(TextPart(part.text) for part in said.content))


def keep_newest_picture(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """As sessions keep them: all texts, and the last of the pictures."""
    kept: list[Message] = []
    has_picture = False
    for message in reversed(messages):
        images = message.images[-1:] if not has_picture else ()
        has_picture = has_picture or bool(images)
        kept.append(_with_pictures(message, images))
    return tuple(reversed(kept))


def without_pictures(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(_with_pictures(message, ()) for message in messages)


def _with_pictures(message: Message, images: tuple[ImageRef, ...]) -> Message:
    if message.images == images:
        return message
    texts = tuple(part for part in message.content if isinstance(part, TextPart))
    # Chat templates refuse messages of nothing: "" is left.
    return replace(message, content=(*map(ImagePart, images), *texts) or (TextPart(""),))


def _to_body(part: TextPart | GivenPicture) -> InputTextBody | InputImageBody:
    if isinstance(part, TextPart):
        return InputTextBody(text=part.text)
    return InputImageBody(file_id=part.file_id, detail=part.detail)
