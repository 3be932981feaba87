"""The route of one turn: order of events, what is stored when, and what happens when it ends early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from ingress.bench import Bench, BuildBench

from deployments.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LeaseLost,
    Overloaded,
    PartUnavailable,
    SessionNotFound,
    UnknownModel,
)
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import (
    SamplingWish,
    TurnChunk,
    TurnEvent,
    TurnFinished,
    TurnInput,
    TurnReply,
    Turns,
    TurnStarted,
)
from deployments.session_router.service import Router
from deployments.types import Chunk, GenerateRequest, Json, Timings, Turn, TurnOutcome, TurnRequest, Usage


def turn(text: str = "Hello", session_id: str | None = "s", **fields: object) -> TurnInput:
    return TurnInput("r1", PUBLIC_TENANT, text, session_id, **fields)  # type: ignore[arg-type]


async def collect(turns: Turns, asked: TurnInput) -> list[TurnEvent]:
    return [event async for event in turns.stream(asked)]


async def stored(bench: Bench) -> int:
    try:
        return len(await bench.router.history(PUBLIC_TENANT, "s"))
    except SessionNotFound:
        return 0


async def open_turns(bench: Bench) -> object:
    return (await bench.router.statistics())["open_turns"]


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


@dataclass(slots=True)
class ScriptedGenerator:
    """Streams these chunks and then ends, whatever is asked."""

    chunks: tuple[Chunk, ...]
    requests: list[GenerateRequest] = field(default_factory=list)
    num_ended: int = 0  # streams that came to their own end

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        for chunk in self.chunks:
            yield chunk
        self.num_ended += 1

    async def statistics(self) -> Json:
        return {}


async def test_events_come_in_order_and_join_to_the_reply(bench: Bench) -> None:
    started, *chunks, finished = await collect(bench.turns, turn())
    assert started == TurnStarted("s", "fake")
    assert isinstance(finished, TurnFinished)
    assert all(isinstance(chunk, TurnChunk) and chunk.text for chunk in chunks)
    assert (
        finished.reply.response == 'You asked: "Hello".' == "".join(c.text for c in chunks if isinstance(c, TurnChunk))
    )
    assert finished.reply.conversation_length == 2
    assert finished.reply.request_id == "r1"
    assert not finished.reply.has_image


async def test_the_plain_reply_is_the_last_event(bench: Bench) -> None:
    reply = await bench.turns.reply(turn(session_id="a"))
    finished = (await collect(bench.turns, turn(session_id="b")))[-1]
    assert isinstance(finished, TurnFinished)
    assert reply.response == finished.reply.response
    assert reply.usage == finished.reply.usage


async def test_the_turn_is_stored_before_the_last_text_is_seen(bench: Bench) -> None:
    seen = [(type(event), await stored(bench)) async for event in bench.turns.stream(turn())]
    assert seen[-3:] == [(TurnChunk, 0), (TurnChunk, 2), (TurnFinished, 2)]


async def test_leaving_at_the_last_text_loses_nothing(bench: Bench) -> None:
    async with contextlib.aclosing(bench.turns.stream(turn())) as events:
        async for event in events:
            if isinstance(event, TurnChunk) and await stored(bench):
                break
    assert await stored(bench) == 2
    assert "ingress_cancelled.stream" not in bench.turns.metrics.snapshot()


async def test_a_finished_generator_comes_to_its_own_end(build_bench: BuildBench) -> None:
    last = Chunk("end", 1, "stop", Usage(1, 0, 0, 2), Timings(0, 0, 0, 0, 0))
    scripted = ScriptedGenerator((Chunk("the ", 1), last))
    assert (await build_bench(scripted).turns.reply(turn())).response == "the end"
    assert scripted.num_ended == 1


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


@pytest.mark.parametrize("fail_after_chunks", [0, 2])
async def test_a_failure_leaves_the_session_as_it_was(build_bench: BuildBench, fail_after_chunks: int) -> None:
    failing = FakeGenerator(failure=Overloaded("full", None, 3.0), fail_after_chunks=fail_after_chunks)
    bench = build_bench(failing)
    await bench.turns.reply(turn(model="other"))
    before = await bench.router.history(PUBLIC_TENANT, "s")
    with pytest.raises(Overloaded) as caught:
        await bench.turns.reply(turn("Again", model="fake"))
    assert caught.value.retry_after_s == 3.0
    assert await bench.router.history(PUBLIC_TENANT, "s") == before
    assert await open_turns(bench) == 0
    assert (await bench.turns.reply(turn("Again", model="other"))).conversation_length == 4


async def test_an_answer_without_end_is_an_error_and_not_stored(build_bench: BuildBench) -> None:
    bench = build_bench(ScriptedGenerator((Chunk("half", 1),)))
    with pytest.raises(PartUnavailable, match="in the middle"):
        await bench.turns.reply(turn())
    assert await stored(bench) == 0
    assert await open_turns(bench) == 0


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


async def test_a_session_deleted_during_the_turn_is_not_brought_back(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    task = asyncio.create_task(bench.turns.reply(turn()))
    await gate.reached.wait()
    await bench.router.delete_session(PUBLIC_TENANT, "s")
    gate.opened.set()
    with pytest.raises(LeaseLost):
        await task
    assert await stored(bench) == 0


async def test_an_unknown_model_opens_nothing(bench: Bench) -> None:
    with pytest.raises(UnknownModel, match="fake, other"):
        await bench.turns.reply(turn(model="none"))
    assert await open_turns(bench) == 0


async def test_a_configured_model_without_generator_is_unavailable(build_bench: BuildBench) -> None:
    bench = build_bench()
    turns = Turns(bench.router, {}, bench.config)
    with pytest.raises(PartUnavailable, match="'fake'"):
        await turns.reply(turn())
    assert await open_turns(bench) == 0


async def test_more_tokens_than_the_model_gives_are_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="at most 512") as caught:
        await bench.turns.reply(turn(sampling=SamplingWish(max_new_tokens=513)))
    assert caught.value.param == "max_new_tokens"
    assert await open_turns(bench) == 0


async def test_the_generator_gets_prompt_sampling_and_time(build_bench: BuildBench) -> None:
    scripted = ScriptedGenerator(())
    bench = build_bench(scripted)
    wish = SamplingWish(temperature=0.5, top_p=0.9, top_k=7, stop=("x",), seed=3)
    with pytest.raises(PartUnavailable):
        await bench.turns.reply(turn("What?", sampling=wish))
    (request,) = scripted.requests
    assert [message.text for message in request.messages] == ["What?"]
    assert (request.request_id, request.tenant) == ("r1", PUBLIC_TENANT)
    assert request.session_key
    assert 100 < request.timeout_s <= 120
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop, sampling.seed) == (
        0.5,
        0.9,
        7,
        ("x",),
        3,
    )
    assert sampling.max_new_tokens == 256


async def test_turns_of_one_session_do_not_interleave(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    first: asyncio.Task[TurnReply] = asyncio.create_task(bench.turns.reply(turn("one")))
    await gate.reached.wait()
    second = asyncio.create_task(bench.turns.reply(turn("two", model="other")))
    gate.opened.set()
    assert (await first).conversation_length == 2
    assert (await second).conversation_length == 4
    assert "remember 2 messages" in (await second).response
