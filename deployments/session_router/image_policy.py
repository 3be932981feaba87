"""Which picture a session keeps: at most one, the newest, and it outlives the message that brought it. Pure."""

from __future__ import annotations

from dataclasses import replace

from deployments.types import ImagePart, Message, TextPart


def keep_newest_picture(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages without any picture but the last; the texts that stood beside the others stay."""
    newest = _newest(messages)
    if newest is None:
        return messages
    position, kept = newest
    return tuple(
        _without_pictures(message, kept if index == position else None) for index, message in enumerate(messages)
    )


def without_pictures(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    return tuple(_without_pictures(message) for message in messages)


def carry_picture(dropped: tuple[Message, ...], kept: tuple[Message, ...]) -> tuple[Message, ...]:
    """`kept`, with the newest picture of `dropped` moved to its oldest user message if it shows none itself.

    A conversation about a picture does not go blind after ten exchanges.
    """
    newest = _newest(dropped)
    if newest is None or any(message.images for message in kept):
        return kept
    position, part = newest
    heir = next(index for index, message in enumerate(kept) if message.role == "user")  # what is asked last is one
    content = (dropped[position].content[part], *kept[heir].content)
    return (*kept[:heir], replace(kept[heir], content=content), *kept[heir + 1 :])


def _newest(messages: tuple[Message, ...]) -> tuple[int, int] | None:
    """Where the last picture stands: which message, and which of its parts."""
    for position in reversed(range(len(messages))):
        for part in reversed(range(len(messages[position].content))):
            if isinstance(messages[position].content[part], ImagePart):
                return position, part
    return None


def _without_pictures(message: Message, kept: int | None = None) -> Message:
    """Without its pictures, the part at `kept` excepted. Chat templates refuse messages of nothing: "" is left."""
    content = tuple(
        part for index, part in enumerate(message.content) if index == kept or not isinstance(part, ImagePart)
    )
    return message if content == message.content else replace(message, content=content or (TextPart(""),))
