"""Messages of a request under /v1, with their pictures still to be read, into the ones that models see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deployments.config import IngressConfig
from deployments.errors import InvalidRequest
from deployments.ingress.form_body import check_text
from deployments.ingress.openai.message_schemas import (
    AssistantMessageBody,
    FilePartBody,
    ImageUrlPartBody,
    MessageBody,
    RefusalBody,
    TextBody,
    UserMessageBody,
)
from deployments.ingress.openai.picture_parts import PictureSource, pictures_first
from deployments.types import ImagePart, ImageRef, Message, Part, Role, TextPart

ContentPart = TextBody | RefusalBody | ImageUrlPartBody | FilePartBody


def check_conversation(messages: Sequence[MessageBody], limits: IngressConfig) -> None:
    """What can be refused before a picture is read. Raises InvalidRequest, MessageTooLong."""
    if len(messages) > limits.max_input_messages:
        raise InvalidRequest(
            f"there are {len(messages)} messages; at most {limits.max_input_messages} are allowed "
            "(ingress.max_input_messages)",
            "messages",
        )
    for index, message in enumerate(messages):
        for place, part in _placed_parts(index, message):
            text = _text_of(part)
            if text.strip():
                check_text(place, text, limits)
        if isinstance(message, UserMessageBody) and not _says_anything(message):
            raise InvalidRequest(f"messages[{index}].content is empty", f"messages[{index}].content")
    if not isinstance(messages[-1], UserMessageBody):
        place = f"messages[{len(messages) - 1}].role"
        raise InvalidRequest("the last message must be the user's: the model answers it", place)


def picture_sources(messages: Sequence[MessageBody]) -> list[PictureSource]:
    """In their order."""
    sources = []
    for index, message in enumerate(messages):
        for place, part in _placed_parts(index, message):
            if isinstance(part, ImageUrlPartBody):
                url = part.image_url
                sources.append(PictureSource(f"{place}.image_url.url", url=url.url, detail=url.detail or "auto"))
            elif isinstance(part, FilePartBody):
                sources.append(PictureSource(f"{place}.file.file_id", file_id=part.file.file_id))
    return sources


def to_conversation(messages: Sequence[MessageBody], images: Sequence[ImageRef]) -> tuple[Message, ...]:
    """`images` are what `picture_sources` named, in the same order."""
    left = iter(images)
    return tuple(_to_message(message, left) for message in messages)


def _to_message(message: MessageBody, images: Iterator[ImageRef]) -> Message:
    parts: list[Part] = []
    for _, part in _placed_parts(0, message):
        if isinstance(part, ImageUrlPartBody | FilePartBody):
            parts.append(ImagePart(next(images)))
        elif text := _text_of(part):
            parts.append(TextPart(text))
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, pictures_first(parts) or (TextPart(""),))


def _placed_parts(index: int, message: MessageBody) -> Iterator[tuple[str, ContentPart]]:
    """The message's parts, each with its place in the body."""
    place, content = f"messages[{index}].content", message.content
    if isinstance(content, str):
        yield place, TextBody(type="text", text=content)
    else:
        for position, part in enumerate(content or ()):
            yield f"{place}[{position}]", part
    if isinstance(message, AssistantMessageBody) and message.refusal:
        yield f"messages[{index}].refusal", RefusalBody(type="refusal", refusal=message.refusal)


def _says_anything(message: UserMessageBody) -> bool:
    parts = [part for _, part in _placed_parts(0, message)]
    return any(isinstance(part, ImageUrlPartBody | FilePartBody) or _text_of(part).strip() for part in parts)


def _text_of(part: ContentPart) -> str:
    if isinstance(part, TextBody):
        return part.text
    return part.refusal if isinstance(part, RefusalBody) else ""
