"""What the client makes of a service that fails in mid-answer, is away for a moment, or is no Retina."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from deployments.client.kept_stream import ComingBack
from deployments.client.service_client import ServiceClient
from deployments.errors import DeadlineExceeded, RetinaError, ServerUnreachable
from deployments.ingress.schemas import ChatRequest, ChunkEvent
from deployments.ingress.task_requests import CaptionRequest

START = b'event: start\nid: s.0\ndata: {"session_id":"a","model":"m","stream_id":"s","new_field":1}\n\n'
FIRST = b'event: chunk\nid: s.1\ndata: {"text":"one"}\n\n'
ERROR = b'{"code":"deadline_exceeded","message":"late","param":null,"request_id":"r"}'
LATE = b'event: error\nid: s.2\ndata: {"error":' + ERROR + b"}\n\n"
ASKED = ChatRequest(message="x")


def stream(*parts: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(parts))


def client(answer: Callable[[httpx.Request], httpx.Response]) -> ServiceClient:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x")
    return ServiceClient(http, ComingBack(within_s=5, longest_wait_s=0.01))


async def test_a_failure_in_mid_answer_is_raised_after_what_was_said() -> None:
    events = client(lambda request: stream(START, FIRST, LATE)).stream_chat(ASKED)
    assert [await anext(events), await anext(events)][1] == ChunkEvent(text="one")
    with pytest.raises(DeadlineExceeded, match="late"):
        await anext(events)


async def test_a_service_that_is_away_for_a_moment_is_come_back_to() -> None:
    requests: list[httpx.Request] = []
    busy = httpx.Response(
        503, json={"error": {"code": "part_unavailable", "message": "", "param": None, "request_id": ""}}
    )
    answers = [stream(START, FIRST), httpx.ConnectError("refused"), busy, stream(LATE)]

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        now = answers.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    events = client(answer).stream_chat(ASKED)
    with pytest.raises(DeadlineExceeded):
        assert len([event async for event in events]) == 2
    assert [request.method for request in requests] == ["POST", "GET", "GET", "GET"]
    assert {request.url.path for request in requests[1:]} == {"/chat/streams/s"}
    assert {request.headers["last-event-id"] for request in requests[1:]} == {"s.1"}


async def test_a_service_that_stays_away_is_told() -> None:
    answers = [stream(START)]

    def answer(request: httpx.Request) -> httpx.Response:
        if answers:
            return answers.pop()
        raise httpx.ConnectError("refused")

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://x")
    events = ServiceClient(http, ComingBack(within_s=0.2, longest_wait_s=0.05)).stream_chat(ASKED)
    await anext(events)
    with pytest.raises(ServerUnreachable, match="refused"):
        await anext(events)


@pytest.mark.parametrize("body", [b"", START.replace(b"s.0", b"x")], ids=["nothing", "start"])
async def test_a_task_that_ends_early_is_no_answer(body: bytes) -> None:
    data = body.replace(b'"session_id":"a",', b"").replace(b'"stream_id":"s"', b'"image_id":null')
    with pytest.raises(ServerUnreachable, match="middle of the answer"):
        _ = [event async for event in client(lambda request: stream(data)).stream_task(CaptionRequest())]


@pytest.mark.parametrize("streams", [True, False])
async def test_what_is_no_retina_is_told_with_its_address(streams: bool) -> None:
    asking = client(lambda request: httpx.Response(200, text="<html>welcome</html>"))
    with pytest.raises(RetinaError, match=r"http://x.* is it Retina, and of this version"):
        await (anext(asking.stream_chat(ASKED)) if streams else asking.chat(ASKED))
