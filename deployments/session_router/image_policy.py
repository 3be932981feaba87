"""Which picture a session keeps: at most one, the newest, and it outlives the message that brought it. Pure."""

from __future__ import annotations

from dataclasses import replace

from deployments.types import ImagePart, ImageRef, Message


def keep_newest_picture(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages without any picture but the last; the texts that stood beside the others stay."""
    newest = _newest(messages)
    if newest is None:
        return messages
    position, image = newest
    return tuple(_with_picture(message, image if index == position else None) for index, message in enumerate(messages))


def carry_picture(dropped: tuple[Message, ...], kept: tuple[Message, ...]) -> tuple[Message, ...]:
    """`kept`, with the picture of `dropped` moved to its oldest user message.

    Both together hold at most one picture. A conversation about a picture does not go blind after ten exchanges.
    """
    newest = _newest(dropped)
    if newest is None:
        return kept
    heir = next(index for index, message in enumerate(kept) if message.role == "user")
    return (*kept[:heir], _with_picture(kept[heir], newest[1]), *kept[heir + 1 :])


def _newest(messages: tuple[Message, ...]) -> tuple[int, ImageRef] | None:
    """Position of the last message with a picture, and the last of its pictures."""
    for index in reversed(range(len(messages))):
        if messages[index].images:
            return index, messages[index].images[-1]
    return None


def _with_picture(message: Message, image: ImageRef | None) -> Message:
    """The same text, with exactly this picture before it, or none."""
    if message.images == (() if image is None else (image,)):
        return message
    texts = tuple(part for part in message.content if not isinstance(part, ImagePart))
    return replace(message, content=texts if image is None else (ImagePart(image), *texts))
