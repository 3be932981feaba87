"""What pydantic does not see of a request: half characters, and wishes that do not go together. Pure."""

from __future__ import annotations

from collections.abc import Set

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from deployments.errors import InvalidRequest
from deployments.ingress.responses.request import CreateResponse


def check_request(asked: CreateResponse) -> None:
    """The input is left to whoever reads it. Raises InvalidRequest."""
    check_text_of(asked, {"input"})
    _check_together(asked)


def check_text_of(asked: BaseModel, left_out: Set[str] = frozenset()) -> None:
    """Raises InvalidRequest for half characters, and for what is nested too deep to be stored."""
    for name in sorted(asked.model_fields_set - left_out):
        try:
            asked.model_dump_json(include={name}, by_alias=True)
        except PydanticSerializationError as error:
            raise InvalidRequest(f"{name} {_explain(error)}", name) from error


def _explain(error: PydanticSerializationError) -> str:
    """pydantic tells them apart in words alone."""
    if "surrogates" in str(error):
        return "holds half of a surrogate pair, which is no character"
    return "is nested too deep"


def _check_together(asked: CreateResponse) -> None:
    if asked.conversation is not None and asked.previous_response_id is not None:
        raise InvalidRequest(
            "conversation and previous_response_id cannot be given together: each says what goes before",
            "previous_response_id",
        )
    if asked.stream_options is not None and not asked.stream:
        raise InvalidRequest("stream_options are for responses with stream: true", "stream_options")
    if asked.resumable and not (asked.stream or asked.background):
        raise InvalidRequest("resumable is for responses with stream: true or background: true", "resumable")
    if not asked.is_stored:
        _check_unstored(asked)


def _check_unstored(asked: CreateResponse) -> None:
    if asked.conversation is not None:
        raise InvalidRequest(
            "a conversation keeps what is said in it: leave out store: false, or go on without conversation", "store"
        )
    for name in ("background", "resumable"):
        if getattr(asked, name):
            raise InvalidRequest(f"{name} needs a stored response: leave out store: false", "store")
