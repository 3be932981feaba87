"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and their statuses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.errors import (
    DeadlineExceeded,
    InvalidImage,
    LeaseLost,
    MessageTooLong,
    NotLastTurn,
    RetinaError,
    UnknownModel,
)
from deployments.ingress.body import Body

PREFIX = "/v1"
MAX_SHOWN_PROBLEMS = 5
MAX_SHOWN_CHARS = 300  # of one problem: pydantic repeats what it was given

INVALID = "invalid_request_error"
SERVER = "server_error"

# What clients of OpenAI look for, where we have another word for it elsewhere.
CODES: Mapping[str, str] = {
    "invalid_request": "invalid_value",
    "unknown_model": "model_not_found",
    "prompt_too_long": "context_length_exceeded",
    "message_too_long": "string_above_max_length",
    "record_not_found": "not_found",
}
# pydantic's words for what is wrong, in OpenAI's.
PROBLEMS: Mapping[str, str] = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported_parameter": "unsupported_parameter",
    "too_long": "array_above_max_length",
    "too_short": "array_below_min_length",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
}
# The official SDKs try again after 409 and 5xx unless they are told that it would be in vain.
IN_VAIN = (DeadlineExceeded, LeaseLost, NotLastTurn)


class OpenAIErrorBody(Body):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorReply(Body):
    error: OpenAIErrorBody


# For the OpenAPI of all routes under /v1.
ERRORS: dict[int | str, dict[str, Any]] = {kind: {"model": OpenAIErrorReply} for kind in ("4XX", "5XX")}


def is_openai_path(path: str) -> bool:
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def openai_status(error: RetinaError) -> int:
    """OpenAI's servers know fewer statuses: a bad picture is a bad request."""
    if isinstance(error, UnknownModel):
        return 404
    return 400 if isinstance(error, InvalidImage | MessageTooLong) else error.status


def to_openai(error: RetinaError) -> OpenAIErrorReply:
    kind = INVALID if openai_status(error) < 500 else SERVER
    return _reply(kind, error.message, error.param, CODES.get(error.code, error.code))


def openai_headers(error: RetinaError) -> dict[str, str]:
    return {"x-should-retry": "false"} if isinstance(error, IN_VAIN) else {}


def to_openai_status_error(status: int, code: str, message: str) -> OpenAIErrorReply:
    """For what the web framework refuses: no such path, no such method, a form that cannot be read."""
    return _reply(INVALID if status < 500 else SERVER, message, None, code)


def to_openai_validation(problems: Sequence[Mapping[str, Any]]) -> OpenAIErrorReply:
    """All that is wrong in words; `param` and `code` are of the first."""
    shown = problems[:MAX_SHOWN_PROBLEMS]
    first = shown[0]
    return _reply(INVALID, "; ".join(map(_explain, shown)), place_of(first["loc"]) or None, _code_of(first["type"]))


def place_of(location: Sequence[int | str]) -> str:
    """Where in the body, as OpenAI writes it: messages[0].content[1].image_url."""
    steps = [step for step in location if step not in ("body", "query", "path")]
    words = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:MAX_SHOWN_CHARS]}" for step in steps)
    return words.removeprefix(".").encode(errors="backslashreplace").decode()


def _explain(problem: Mapping[str, Any]) -> str:
    place, words = place_of(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    words = words if len(words) <= MAX_SHOWN_CHARS else f"{words[:MAX_SHOWN_CHARS]}…"
    return f"{place}: {words}" if place else words


def _code_of(kind: str) -> str:
    if kind in PROBLEMS:
        return PROBLEMS[kind]
    return "invalid_type" if kind.endswith("_type") else "invalid_value"


def _reply(kind: str, message: str, param: str | None, code: str | None) -> OpenAIErrorReply:
    return OpenAIErrorReply(error=OpenAIErrorBody(message=message, type=kind, param=param, code=code))
