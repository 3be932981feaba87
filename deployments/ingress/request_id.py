"""A name for every request, which its log lines, its reply and the other parts carry."""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_request_id: ContextVar[str] = ContextVar("request_id", default="-")


def current_request_id() -> str:
    """Of the request that this task works for; "-" outside of requests."""
    return _request_id.get()


@contextlib.contextmanager
def named_request(given: str | None) -> Iterator[str]:
    """Name the request that this task and those it starts work for: as the client did, if that is safe to repeat."""
    name = given if given is not None and SAFE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    token = _request_id.set(name)
    try:
        yield name
    finally:
        _request_id.reset(token)


class RequestIdFilter(logging.Filter):
    """Gives log records `request_id`. Add it to a handler whose format names %(request_id)s."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = current_request_id()
        return True
