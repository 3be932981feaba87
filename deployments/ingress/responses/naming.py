"""What other parts say of a turn, by the names that things have in requests for responses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from deployments.errors import RetinaError

PARAMS: Mapping[str, str] = {
    "message": "input",
    "image": "input",
    "role": "input",
    "max_new_tokens": "max_output_tokens",
    "session_id": "conversation",
    "follows": "previous_response_id",
    "response_format": "text.format",
}


def param_here(param: str | None) -> str | None:
    return param if param is None else PARAMS.get(param, param)


def words_here(message: str, param: str | None) -> str:
    """Names that are no words of English stand in messages as they are."""
    if param is None or param not in PARAMS or "_" not in param:
        return message
    return message.replace(param, PARAMS[param])


@contextlib.contextmanager
def in_our_words() -> Iterator[None]:
    try:
        yield
    except RetinaError as error:
        if error.param not in PARAMS:
            raise
        message = words_here(error.message, error.param)
        raise type(error)(message, param_here(error.param), error.retry_after_s) from error
