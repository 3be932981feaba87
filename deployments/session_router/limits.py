"""What a request may say of its session and its message: pure rules, each raising InvalidRequest or a kind of it."""

from __future__ import annotations

import re

from deployments.errors import InvalidRequest, MessageTooLong
from deployments.types import Message, TextPart, TurnRequest

_SESSION_ID = re.compile(r"[A-Za-z0-9._~-]+")
_PATH_STEPS = (".", "..")  # URL normalisation would swallow them before they reach /chat/history/{session_id}


def check_session_id(session_id: str, max_chars: int) -> None:
    """Raises InvalidRequest unless the id is unreserved in URLs as it stands. The message never repeats the id."""
    if len(session_id) <= max_chars and _SESSION_ID.fullmatch(session_id) and session_id not in _PATH_STEPS:
        return
    raise InvalidRequest(
        f"session_id must have 1 to {max_chars} characters out of A-Z a-z 0-9 . _ ~ - "
        f"and not be . or ..; this one has {len(session_id)} characters",
        "session_id",
    )


def check_turn(request: TurnRequest, max_chars: int) -> None:
    """All that the turn brings; its texts together, the instructions too, have at most `max_chars` characters.

    Raises MessageTooLong, InvalidRequest.
    """
    if request.input:
        _check_input(request)
    else:
        check_message(request.text, max_chars)
    _check_unicode(request.instructions, "instructions")
    num_instructions = len(request.instructions)
    num_chars = num_instructions + len(request.text) + sum(len(message.text) for message in request.input)
    if num_chars > max_chars:
        raise MessageTooLong(
            f"what this turn brings has {num_chars} characters, {num_instructions} of them instructions; "
            f"at most {max_chars} are allowed",
            "instructions" if num_instructions > max_chars else "message",
        )


def check_message(text: str, max_chars: int) -> None:
    """Raises MessageTooLong, or InvalidRequest when there is nothing to answer or no way to write it down."""
    if len(text) > max_chars:
        raise MessageTooLong(f"the message has {len(text)} characters; at most {max_chars} are allowed", "message")
    if not text.strip():
        raise InvalidRequest("the message is empty; it needs at least one character that is not white space", "message")
    _check_unicode(text, "message")


def _check_input(request: TurnRequest) -> None:
    if request.text or request.image is not None:
        raise InvalidRequest("a turn has a message of its own or several in input, not both", "message")
    for message in request.input:
        _check_input_message(message)
    question = request.input[-1]
    if question.role != "user":
        raise InvalidRequest(f"the last message is the {question.role}'s; it should be the user's question", "message")
    if not question.text.strip() and not question.images:
        raise InvalidRequest("the last message is empty; it needs a picture or words", "message")


def _check_input_message(message: Message) -> None:
    if message.role not in ("user", "assistant"):
        raise InvalidRequest(
            f"a message has the role {message.role!r}; it may be user or assistant, and what the system says stands in "
            "the instructions",
            "message",
        )
    if not message.content:
        raise InvalidRequest("a message has no content; it needs at least one part", "message")
    for part in message.content:
        if isinstance(part, TextPart):
            _check_unicode(part.text, "message")


def _check_unicode(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"the {param} holds half of a surrogate pair, which is no character", param) from None
