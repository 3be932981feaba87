"""Session ids and messages: what is allowed, and that refusals say so without repeating what was sent."""

from __future__ import annotations

import pytest

from deployments.errors import InvalidRequest, MessageTooLong
from deployments.session_router.limits import check_message, check_session_id


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
