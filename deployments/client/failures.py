"""Error replies as the errors that they were on the other side, and failures of connections as one of ours."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
from pydantic import ValidationError

from deployments.errors import InvalidRequest, NotFound, Overloaded, RetinaError, ServerUnreachable
from deployments.ingress.schemas import ErrorBody, ErrorReply

MAX_SHOWN_CHARS = 300  # of a reply that is not ours


def error_of(response: httpx.Response) -> RetinaError:
    """Of a reply that was read and is no success."""
    retry_after_s = _seconds(response.headers.get("retry-after"))
    try:
        body = ErrorReply.model_validate_json(response.content, extra="ignore").error
    except ValidationError:
        return _foreign(response, retry_after_s)
    return to_error(body, response.status_code, retry_after_s)


def to_error(body: ErrorBody, status: int, retry_after_s: float | None = None) -> RetinaError:
    kind = _BY_CODE.get(body.code) or _by_status(status)
    return kind(body.message, body.param, retry_after_s)


def unreachable(address: str, error: httpx.HTTPError) -> ServerUnreachable:
    reason = str(error) or type(error).__name__
    return ServerUnreachable(
        f"no answer from {address} ({reason}); is it served? `retina serve` starts a service on this machine, and "
        "without --server and RETINA_SERVER this command works in its own process"
    )


def _foreign(response: httpx.Response, retry_after_s: float | None) -> RetinaError:
    shown = " ".join(response.text.split())[:MAX_SHOWN_CHARS]
    message = f"HTTP {response.status_code} from {response.url}: {shown or response.reason_phrase}"
    return _by_status(response.status_code)(message, None, retry_after_s)


def _by_status(status: int) -> type[RetinaError]:
    if status in (429, 502, 503):  # 502: of a proxy in front whose service is just starting
        return Overloaded
    if status == 404:
        return NotFound
    return InvalidRequest if status < 500 else RetinaError


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not read."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None


def _every_kind(kind: type[RetinaError]) -> Iterator[type[RetinaError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _every_kind(below)


_BY_CODE = {kind.code: kind for kind in _every_kind(RetinaError)}
