"""Ray handles as Protocols: what becomes of calls that Serve drops, refuses or loses, and who may cancel them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
import ray.exceptions
from ray.serve.exceptions import BackPressureError

from deployments.errors import DeadlineExceeded, Overloaded, PartUnavailable, RecordNotFound, UnknownModel
from deployments.handles import DIRECTLY, RayGenerator, RayParts, RaySessionRouter, RayVisionEncoder, ray_errors_as_ours
from deployments.record_types import Record
from deployments.types import (
    Chunk,
    EncodeRequest,
    GenerateRequest,
    ImageRef,
    SamplingParams,
    Turn,
    TurnOutcome,
    TurnRequest,
)

pytestmark = pytest.mark.ray

OUTCOME = TurnOutcome(Turn("public", "s", "lease", "smolvlm", (), "key"), "answer")
REQUEST = GenerateRequest("r", "public", (), SamplingParams(), 10, "session-key")
IMAGE = ImageRef("a" * 64, 1, 1, 1, "image/png")
RECORD = Record("response", "r", 1, "{}")


class Response:
    """A DeploymentResponse: awaited once, may be cancelled."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.is_cancelled = False

    def __await__(self) -> Any:
        return self._work().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Stream(Response):
    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self._work()


class Handle:
    """Every method answers with the next of `works`; options are remembered."""

    def __init__(self, *works: Callable[[], Any], kind: type[Response] = Response) -> None:
        self._works = list(works)
        self._kind = kind
        self.responses: list[Response] = []
        self.chosen: dict[str, Any] = {}
        self.asked: list[tuple[Any, ...]] = []

    def options(self, **chosen: Any) -> Handle:
        self.chosen |= chosen
        return self

    def __getattr__(self, name: str) -> Handle:
        return self

    def remote(self, *args: object, **named: object) -> Response:
        self.asked.append((*args, named) if named else args)
        self.responses.append(self._kind(self._works.pop(0)))
        return self.responses[-1]


def raising(error: BaseException) -> Callable[[], Any]:
    async def work() -> None:
        raise error

    return work


def giving(value: object) -> Callable[[], Any]:
    async def work() -> object:
        return value

    return work


async def never() -> None:
    await asyncio.Event().wait()


DROPPED = [
    asyncio.CancelledError(),  # what Serve's handles raise for a call that Serve gave up by itself
    ray.exceptions.RayActorError(),
    ray.exceptions.ObjectLostError("00" * 28, None, ""),
    ray.exceptions.OutOfMemoryError("killed"),
    BackPressureError(num_queued_requests=5, max_queued_requests=4),
    grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "the replica has gone"),
]


@pytest.mark.parametrize("error", DROPPED, ids=lambda error: type(error).__name__)
async def test_a_finished_turn_is_stored_at_the_second_try(error: BaseException) -> None:
    handle = Handle(raising(error), giving(4))
    assert await RaySessionRouter(handle, 1).close_turn(OUTCOME) == 4
    assert len(handle.responses) == 2


async def test_storing_is_no_child_of_the_request() -> None:
    request = contextvars.ContextVar("request", default="none")
    request.set("a client's")
    seen = []

    async def look() -> int:
        seen.append(request.get())
        return 2

    assert await RaySessionRouter(Handle(look), 1).close_turn(OUTCOME) == 2
    assert seen == ["none"]


RECORD_CALLS: dict[str, tuple[Callable[[RaySessionRouter], Any], object]] = {
    "put_record": (lambda router: router.put_record("public", RECORD), None),
    "record": (lambda router: router.record("public", "response", "r"), RECORD),
    "records": (lambda router: router.records("public", "response", 2, "q", oldest_first=True), (RECORD,)),
}


@pytest.mark.parametrize("name", RECORD_CALLS)
async def test_storing_and_reading_records_ride_out_a_restart(name: str) -> None:
    call, reply = RECORD_CALLS[name]
    handle = Handle(raising(ray.exceptions.RayActorError()), giving(reply))
    assert await call(RaySessionRouter(handle, 1)) == reply
    assert handle.asked[0] == handle.asked[1]
    assert len(handle.responses) == 2


async def test_pages_of_records_are_asked_for_as_they_were_here() -> None:
    handle = Handle(giving(()))
    await RaySessionRouter(handle, 1).records("public", "file", 2, "q", oldest_first=True)
    assert handle.asked == [("public", "file", 2, "q", {"oldest_first": True})]


async def test_a_deletion_is_not_repeated_into_not_found() -> None:
    """The first one may have happened although its reply was lost."""
    handle = Handle(raising(ray.exceptions.RayActorError()), raising(RecordNotFound("there is no response 'r'")))
    with pytest.raises(PartUnavailable):
        await RaySessionRouter(handle, 1).delete_record("public", "response", "r")
    assert len(handle.responses) == 1
    assert await RaySessionRouter(Handle(giving(RECORD)), 1).delete_record("public", "response", "r") == RECORD


async def test_a_record_that_is_not_there_is_not_asked_for_again() -> None:
    handle = Handle(raising(RecordNotFound("there is no response 'r'", "response_id")))
    with pytest.raises(RecordNotFound):
        await RaySessionRouter(handle, 1).record("public", "response", "r")


async def test_a_call_that_we_cancel_is_cancelled_there_and_stays_cancelled() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await never()

    handle = Handle(work)
    call = asyncio.create_task(RayVisionEncoder(handle).encode(EncodeRequest("public", "m", IMAGE, 30)))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert handle.responses[0].is_cancelled
    assert handle.chosen == {"session_id": IMAGE.id, "_by_reference": True}


@pytest.mark.parametrize("reply", ["cancelled by its client", "lost with the replica"])
async def test_a_turn_whose_reply_nobody_gets_is_given_back_by_its_lease(reply: str) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def grant() -> Turn:
        begun.set()
        if reply == "lost with the replica":
            raise ray.exceptions.RayActorError
        await never()
        raise AssertionError

    async def close() -> int:
        closed.set()
        return 0

    handle = Handle(grant, close)
    opening = asyncio.create_task(RaySessionRouter(handle, 60).open_turn(TurnRequest("r", "public", None, "Hello")))
    await begun.wait()
    opening.cancel()
    with pytest.raises((asyncio.CancelledError, PartUnavailable)):
        await opening
    await asyncio.wait_for(closed.wait(), 5)
    (asked,), (outcome,) = handle.asked
    assert asked.lease
    assert (outcome.turn.session_id, outcome.turn.lease) == (asked.session_id, asked.lease)
    assert outcome.answer is None


async def test_a_callee_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.handles.HOP_ALLOWANCE_S", 0.01)
    handle = Handle(never)
    with pytest.raises(DeadlineExceeded, match="vision_encoder"):
        await RayVisionEncoder(handle).encode(EncodeRequest("public", "m", IMAGE, 0.01))
    assert handle.responses[0].is_cancelled


async def test_leaving_a_stream_cancels_it_there() -> None:
    async def chunks() -> AsyncIterator[Chunk]:
        while True:
            yield Chunk("word", 1)

    handle = Handle(chunks, kind=Stream)
    stream = RayGenerator(handle, "smolvlm").stream(REQUEST)
    assert (await anext(stream)).text == "word"
    await stream.aclose()
    assert handle.responses[0].is_cancelled
    assert handle.chosen == {"stream": True, "session_id": "session-key", **DIRECTLY}


async def test_a_stream_that_serve_drops_says_so() -> None:
    async def chunks() -> AsyncIterator[Chunk]:
        yield Chunk("word", 1)
        raise asyncio.CancelledError

    stream = RayGenerator(Handle(chunks, kind=Stream), "smolvlm").stream(REQUEST)
    await anext(stream)
    with pytest.raises(PartUnavailable, match="generator-smolvlm"):
        await anext(stream)


def test_what_a_replica_raised_is_raised_here() -> None:
    error = ray.exceptions.RayTaskError("open_turn", "traceback", UnknownModel("unknown model 'x'", "model"))
    with pytest.raises(UnknownModel) as raised, ray_errors_as_ours("session_router"):
        raise error.as_instanceof_cause()
    assert raised.value.param == "model"


def test_a_full_part_is_overloaded() -> None:
    with pytest.raises(Overloaded) as raised, ray_errors_as_ours("vision_encoder"):
        raise BackPressureError(num_queued_requests=5, max_queued_requests=4)
    assert raised.value.retry_after_s


@pytest.mark.parametrize("is_wrapped", [True, False])
async def test_a_part_that_fails_to_say_how_it_is_is_not_ready(is_wrapped: bool) -> None:
    bug = ValueError("a bug with /a/path")
    error = ray.exceptions.RayTaskError("statistics", "traceback", bug).as_instanceof_cause() if is_wrapped else bug
    router = RaySessionRouter(Handle(raising(error)), 1)
    encoder = RayVisionEncoder(Handle(giving({"images": 0})))
    states = await RayParts(router, encoder, {}).ready()
    assert states["vision_encoder"] is True
    assert "failed to say how it is" in str(states["session_router"])
    assert "/a/path" not in str(states)
