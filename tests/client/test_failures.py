"""Error replies become the errors that they were; what is no reply of ours is told as it is."""

from __future__ import annotations

import httpx
import pytest

from deployments.client.failures import error_of, unreachable
from deployments.errors import InvalidRequest, NotFound, Overloaded, RetinaError, SessionBusy, UnknownModel
from deployments.ingress.error_replies import to_reply


def reply(status: int, body: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(status, content=body, headers=headers, request=httpx.Request("GET", "http://x/y"))


@pytest.mark.parametrize(
    "error", [UnknownModel("no such", "model"), SessionBusy("held"), Overloaded("full", "image", 2.5)]
)
def test_the_way_there_and_back(error: RetinaError) -> None:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    back = error_of(reply(error.status, to_reply(error).model_dump_json().encode(), **headers))
    assert type(back) is type(error)
    assert back.args == error.args


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (418, InvalidRequest), (429, Overloaded), (502, Overloaded), (500, RetinaError)],
)
def test_replies_of_others_go_by_their_status(status: int, kind: type[RetinaError]) -> None:
    error = error_of(reply(status, b"<html>\n  sorry " + b"x" * 1000))
    assert type(error) is kind
    assert f"HTTP {status} from http://x/y: <html> sorry xxx" in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(("header", "seconds"), [("2", 2.0), ("-1", None), ("nan", None), ("soon", None)])
def test_retry_after(header: str, seconds: float | None) -> None:
    assert error_of(reply(503, b"", **{"retry-after": header})).retry_after_s == seconds


def test_nobody_there_is_told_with_what_to_do() -> None:
    message = unreachable("http://x", httpx.ReadTimeout("")).message
    assert "http://x (ReadTimeout)" in message
    assert "retina serve" in message
