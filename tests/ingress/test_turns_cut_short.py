"""Turns whose client leaves or whose time is over, at every stage: slot and lease are given back."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest
from ingress.bench import BuildBench, collect, open_turns, stored, turn

from deployments.errors import DeadlineExceeded, PartUnavailable
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.turns import TurnChunk, TurnStarted
from deployments.session_router.service import Router
from deployments.types import Turn, TurnOutcome, TurnRequest


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class HeldRouter:
    """A router whose calls wait for the test."""

    inner: Router | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    may_open: asyncio.Event = field(default_factory=asyncio.Event)
    may_close: asyncio.Event = field(default_factory=asyncio.Event)

    def around(self, router: Router) -> HeldRouter:
        self.inner = router
        return self

    async def open_turn(self, request: TurnRequest) -> Turn:
        assert self.inner is not None
        self.reached.set()
        await self.may_open.wait()
        return await self.inner.open_turn(request)

    async def close_turn(self, outcome: TurnOutcome) -> int:
        assert self.inner is not None
        self.reached.set()
        await self.may_close.wait()
        return await self.inner.close_turn(outcome)


class ForgetfulRouter(HeldRouter):
    """Stores no answer."""

    async def close_turn(self, outcome: TurnOutcome) -> int:
        assert self.inner is not None
        if outcome.answer is not None:
            raise PartUnavailable("the disk is full")
        return await self.inner.close_turn(outcome)


async def test_an_answer_that_cannot_be_stored_leaves_the_session_free(build_bench: BuildBench) -> None:
    router = ForgetfulRouter()
    router.may_open.set()
    bench = build_bench(wrap_router=router.around)
    with pytest.raises(PartUnavailable, match="full"):
        await bench.turns.reply(turn())
    await bench.turns.drain()
    assert await open_turns(bench) == 0
    assert await stored(bench) == 0


# ------------------------------------------------------------------------------------- cancelled


@pytest.mark.parametrize(("after_chunks", "stage"), [(0, "first_token"), (2, "stream")])
async def test_cancelling_frees_slot_and_lease(build_bench: BuildBench, after_chunks: int, stage: str) -> None:
    gate = Gate(after_chunks)
    generator = FakeGenerator(gate=gate)
    bench = build_bench(generator)
    task = asyncio.create_task(collect(bench.turns, turn()))
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await generator.statistics())["cancelled"] == 1
    assert await open_turns(bench) == 0
    assert await stored(bench) == 0
    assert bench.turns.metrics.snapshot() == {f"ingress_cancelled.{stage}": 1}


async def test_closing_the_iterator_frees_slot_and_lease(build_bench: BuildBench) -> None:
    generator = FakeGenerator()
    bench = build_bench(generator)
    events = bench.turns.stream(turn())
    assert isinstance(await anext(events), TurnStarted)
    assert isinstance(await anext(events), TurnChunk)
    await events.aclose()
    assert (await generator.statistics())["cancelled"] == 1
    assert await open_turns(bench) == 0
    assert await stored(bench) == 0


async def test_a_second_cancellation_does_not_stop_the_clean_up(build_bench: BuildBench) -> None:
    gate = Gate()
    held = HeldRouter(may_open=_set())
    bench = build_bench(FakeGenerator(gate=gate), held.around)
    task = asyncio.create_task(collect(bench.turns, turn()))
    await gate.reached.wait()
    held.reached.clear()
    task.cancel()
    await held.reached.wait()  # it is aborting
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await open_turns(bench) == 1
    held.may_close.set()
    await bench.turns.drain()
    assert await open_turns(bench) == 0


async def test_a_client_that_leaves_gives_up_its_place_before_the_session(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate), session_router={"lease_wait_s": 1000})
    first = asyncio.create_task(bench.turns.reply(turn("one")))
    await gate.reached.wait()
    gone = asyncio.create_task(collect(bench.turns, turn("gone")))
    async with asyncio.timeout(10):
        while (await bench.router.statistics())["waiting_turns"] != 1:  # noqa: ASYNC110 - it shows no event
            await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await bench.turns.drain()  # long before lease_wait_s, and while the first turn is open
    assert (await bench.router.statistics())["waiting_turns"] == 0
    assert not first.done()
    gate.opened.set()
    assert (await first).conversation_length == 2
    assert await open_turns(bench) == 0
    assert bench.turns.metrics.snapshot() == {"ingress_cancelled.open": 1}


class GrantingRouter(HeldRouter):
    """Grants the lease although it is cancelled: the cancellation came when the turn was on its way."""

    async def open_turn(self, request: TurnRequest) -> Turn:
        assert self.inner is not None
        turn = await self.inner.open_turn(request)
        self.reached.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.may_open.wait()
        return turn


@pytest.mark.parametrize("why", ["cancelled", "late"])
async def test_a_lease_that_is_granted_in_that_instant_is_given_back(build_bench: BuildBench, why: str) -> None:
    granting = GrantingRouter(may_close=_set())
    bench = build_bench(None, granting.around, ingress={"turn_timeout_s": 0.05 if why == "late" else 100})
    task = asyncio.create_task(collect(bench.turns, turn()))
    await granting.reached.wait()
    if why == "cancelled":
        task.cancel()
    with pytest.raises(asyncio.CancelledError if why == "cancelled" else DeadlineExceeded):
        await task
    await bench.turns.drain()
    assert await open_turns(bench) == 0
    assert (await bench.router.statistics())["metrics"] == {
        "session_router_turns.aborted": 1,
        "session_router_turns.opened": 1,
    }


@dataclass(slots=True)
class CancellingRouter(HeldRouter):
    """The client leaves in the very step that grants its lease."""

    client: asyncio.Task[object] | None = None

    async def open_turn(self, request: TurnRequest) -> Turn:
        assert self.inner is not None
        assert self.client is not None
        turn = await self.inner.open_turn(request)
        self.client.cancel()
        return turn


async def test_a_lease_that_is_granted_in_the_same_step_is_given_back(build_bench: BuildBench) -> None:
    router = CancellingRouter(may_close=_set())
    bench = build_bench(None, router.around)
    router.client = asyncio.create_task(collect(bench.turns, turn()))
    with pytest.raises(asyncio.CancelledError):
        await router.client
    await bench.turns.drain()
    assert await open_turns(bench) == 0
    assert (await bench.router.statistics())["metrics"]["session_router_turns.aborted"] == 1


async def test_a_failure_that_nobody_waits_for_is_logged(
    build_bench: BuildBench, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingRouter(HeldRouter):
        async def open_turn(self, request: TurnRequest) -> Turn:
            self.reached.set()
            try:
                await self.may_open.wait()
            finally:
                raise ValueError("a bug")

    failing = FailingRouter()
    bench = build_bench(None, failing.around)
    task = asyncio.create_task(collect(bench.turns, turn()))
    await failing.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bench.turns.drain()
    assert "opened for nobody" in caplog.text
    assert "a bug" in caplog.text


async def test_an_answer_is_stored_even_when_the_client_leaves_during_the_commit(build_bench: BuildBench) -> None:
    held = HeldRouter(may_open=_set())
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate), held.around)
    task = asyncio.create_task(collect(bench.turns, turn()))
    await gate.reached.wait()
    held.reached.clear()
    gate.opened.set()
    await held.reached.wait()  # it is committing
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(bench) == 0
    held.may_close.set()
    await bench.turns.drain()
    assert await stored(bench) == 2


# ------------------------------------------------------------------------------------- late


async def test_a_turn_has_a_deadline(build_bench: BuildBench) -> None:
    generator = FakeGenerator(gate=Gate(1))
    bench = build_bench(generator, ingress={"turn_timeout_s": 0.05})
    with pytest.raises(DeadlineExceeded):
        await bench.turns.reply(turn())
    assert (await generator.statistics())["running"] == 0
    assert await open_turns(bench) == 0


async def test_a_router_that_hangs_does_not_hold_the_turn(build_bench: BuildBench) -> None:
    held = HeldRouter(may_close=_set())
    bench = build_bench(None, held.around, ingress={"turn_timeout_s": 0.05})
    with pytest.raises(DeadlineExceeded, match=r"ingress\.turn_timeout_s"):
        await bench.turns.reply(turn())
    held.may_open.set()
    await bench.turns.drain()
    assert await open_turns(bench) == 0
