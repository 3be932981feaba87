"""At most one picture, the newest; it outlives the message that brought it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deployments.session_router.image_policy import carry_picture, keep_newest_picture, without_pictures
from deployments.types import ImagePart, ImageRef, Message, TextPart

PictureMaker = Callable[[str], ImageRef]


def user(text: str, *images: ImageRef) -> Message:
    return Message("user", (*map(ImagePart, images), TextPart(text)), "2025-01-01T12:00:00.000Z")


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


def test_messages_without_pictures_stay_as_they_are() -> None:
    messages = (user("a"), assistant("b"))
    assert keep_newest_picture(messages) is messages
    assert carry_picture(messages, messages) is messages


def test_only_the_newest_picture_stays(picture: PictureMaker) -> None:
    old, new = picture("a"), picture("b")
    assert keep_newest_picture((user("1", old), assistant("2"), user("3", new), user("4"))) == (
        user("1"),
        assistant("2"),
        user("3", new),
        user("4"),
    )


def test_of_several_in_one_message_the_last_stays(picture: PictureMaker) -> None:
    assert keep_newest_picture((user("1", picture("a"), picture("b")),)) == (user("1", picture("b")),)


@pytest.mark.parametrize("kept", [(user("3"), assistant("4")), (assistant("2"), user("3"), assistant("4"))])
def test_the_picture_moves_to_the_oldest_kept_question(kept: tuple[Message, ...], picture: PictureMaker) -> None:
    carried = carry_picture((user("1", picture("a")),), kept)
    assert carried[kept.index(user("3"))] == user("3", picture("a"))
    assert [message.text for message in carried] == [message.text for message in kept]
    assert sum(len(message.images) for message in carried) == 1


def test_nothing_is_carried_to_those_who_show_a_picture(picture: PictureMaker) -> None:
    kept = (user("2"), assistant("3"), user("4", picture("b"), picture("c")))
    assert carry_picture((user("1", picture("a")),), kept) is kept


def test_the_newest_of_several_is_carried(picture: PictureMaker) -> None:
    dropped = (user("1", picture("a")), user("2", picture("b"), picture("c")), assistant("3"))
    assert carry_picture(dropped, (user("4"),)) == (user("4", picture("c")),)


def test_a_message_of_a_picture_alone_is_never_left_without_content(picture: PictureMaker) -> None:
    alone = Message("user", (ImagePart(picture("a")),))
    assert without_pictures((alone,)) == (Message("user", (TextPart(""),)),)
    assert keep_newest_picture((alone, user("2", picture("b"))))[0].content == (TextPart(""),)
    assert without_pictures((user("1", picture("a")), assistant("2"))) == (user("1"), assistant("2"))
