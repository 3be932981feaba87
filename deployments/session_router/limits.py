"""What a request may say of its session and its message: pure rules, each raising InvalidRequest or a kind of it."""

from __future__ import annotations

import re

from deployments.errors import InvalidRequest, MessageTooLong

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


def check_message(text: str, max_chars: int) -> None:
    """Raises MessageTooLong, or InvalidRequest when there is nothing to answer or no way to write it down."""
    if len(text) > max_chars:
        raise MessageTooLong(f"the message has {len(text)} characters; at most {max_chars} are allowed", "message")
    if not text.strip():
        raise InvalidRequest("the message is empty; it needs at least one character that is not white space", "message")
    if not _is_unicode(text):
        raise InvalidRequest("the message holds half of a surrogate pair, which is no character", "message")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
