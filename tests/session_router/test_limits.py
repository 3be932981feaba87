"""Session ids and messages: what is allowed, and that refusals say so without repeating what was sent."""

from __future__ import annotations

import pytest

from deployments.errors import InvalidRequest, MessageTooLong
from deployments.session_router.limits import check_message, check_session_id, check_turn
from deployments.types import ImagePart, ImageRef, Message, TextPart, TurnRequest


@pytest.mark.parametrize("session_id", ["a", "your-session-id", "A.b_c~d-9", "...", "x" * 128])
def test_ids_that_are_allowed(session_id: str) -> None:
    check_session_id(session_id, 128)


@pytest.mark.parametrize(
    "session_id",
    ["", ".", "..", "a/b", "../etc", "a b", "a\n", "\n", "a\x00b", "ä", "%2F", "a?b", "x" * 129, "x" * 10_000],
)
def test_ids_that_are_refused(session_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"1 to 128 characters out of A-Z a-z 0-9 \. _ ~ -") as refusal:
        check_session_id(session_id, 128)
    assert refusal.value.param == "session_id"
    assert f"has {len(session_id)} characters" in refusal.value.message
    assert len(refusal.value.message) < 200
    assert refusal.value.message.isprintable()


def test_the_length_of_ids_is_a_setting() -> None:
    check_session_id("x" * 3, 3)
    with pytest.raises(InvalidRequest, match="1 to 3 characters"):
        check_session_id("x" * 4, 3)


@pytest.mark.parametrize("text", ["a", " a ", "\U0001f600", "x" * 10])
def test_messages_that_are_allowed(text: str) -> None:
    check_message(text, max_chars=10)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003", "half \ud83d"])
def test_messages_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_message(text, max_chars=10)
    assert refusal.value.param == "message"


def test_a_long_message_is_told_its_limit() -> None:
    with pytest.raises(MessageTooLong, match="11 characters; at most 10") as refusal:
        check_message("x" * 11, max_chars=10)
    assert (refusal.value.status, refusal.value.param) == (413, "message")


# ------------------------------------------------------------------------------- what a turn brings

PICTURE = ImageRef("a" * 64, 4, 3, 100, "image/png")


def said(role: str, *parts: object) -> Message:
    return Message(role, tuple(ImagePart(part) if isinstance(part, ImageRef) else TextPart(part) for part in parts))


def brings(*messages: Message, **fields: object) -> TurnRequest:
    return TurnRequest("request", "tenant", None, input=messages, **fields)


@pytest.mark.parametrize(
    "request_",
    [
        brings(said("user", "0123456789")),
        brings(said("user", PICTURE)),
        brings(said("user", "", PICTURE, "")),
        brings(said("assistant", "01234"), said("user", ""), said("user", "5678"), instructions="9"),
        brings(said("user", PICTURE, "a", PICTURE, "b"), said("user", "c")),
        TurnRequest("request", "tenant", None, "01234", PICTURE, instructions="56789"),
    ],
)
def test_turns_that_are_allowed(request_: TurnRequest) -> None:
    check_turn(request_, max_chars=10)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (brings(said("assistant", "a")), "assistant's; it should be the user's"),
        (brings(said("user", "a"), said("assistant", "b")), "assistant's; it should be the user's"),
        (brings(said("user", " \n", "")), "empty; it needs a picture or words"),
        (brings(said("system", "a"), said("user", "b")), "role 'system'; it may be user or assistant"),
        (brings(said("user"), said("user", "b")), "no content"),
        (brings(said("user", "half \ud83d"), said("user", "b")), "surrogate"),
        (brings(said("user", "a"), text="b"), "not both"),
        (brings(said("user", "a"), image=PICTURE), "not both"),
        (TurnRequest("request", "tenant", None, instructions="a"), "is empty"),
    ],
)
def test_turns_that_are_refused(request_: TurnRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        check_turn(request_, max_chars=20)
    assert refusal.value.param == "message"


def test_instructions_are_text() -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as refusal:
        check_turn(brings(said("user", "a"), instructions="half \ud83d"), max_chars=20)
    assert refusal.value.param == "instructions"


@pytest.mark.parametrize(
    ("request_", "counts", "param"),
    [
        (
            brings(said("user", "0123"), said("assistant", "456"), said("user", "78", "9a")),
            "11 characters, 0",
            "message",
        ),
        (brings(said("user", "012345"), instructions="6789a"), "11 characters, 5", "message"),
        (TurnRequest("request", "tenant", None, "012345", instructions="6789a"), "11 characters, 5", "message"),
        (brings(said("user", "0"), instructions="123456789ab"), "12 characters, 11", "instructions"),
    ],
)
def test_all_texts_of_a_turn_share_one_limit(request_: TurnRequest, counts: str, param: str) -> None:
    with pytest.raises(MessageTooLong, match=f"{counts} of them instructions; at most 10") as refusal:
        check_turn(request_, max_chars=10)
    assert (refusal.value.status, refusal.value.param) == (413, param)
