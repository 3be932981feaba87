"""One opened turn: what the router is told of it, records stored with the answer, and ends from outside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from ingress.bench import BuildBench, open_turns, stored, turn

from deployments.errors import Overloaded, RecordNotFound
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.running_turn import RunningTurn
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import Draft, TurnChunk, TurnFinished, TurnReply
from deployments.ingress.turns import Turns
from deployments.record_types import Record
from deployments.session_router.service import Router
from deployments.types import Message, TextPart, Turn, TurnOutcome, TurnRequest

DRAFT = Draft("response", "r-1", '{"asked":1}')


def complete(draft: Draft, reply: TurnReply, opened: Turn) -> Record:
    return Record(draft.kind, draft.id, 1.0, f"{draft.body}|{reply.response}|{reply.finish_reason}|{opened.lease}")


@dataclass(slots=True)
class Noting:
    """Keeps what the router is asked."""

    router: Router
    requests: list[TurnRequest] = field(default_factory=list)
    outcomes: list[TurnOutcome] = field(default_factory=list)

    async def open_turn(self, request: TurnRequest) -> Turn:
        self.requests.append(request)
        return await self.router.open_turn(request)

    async def close_turn(self, outcome: TurnOutcome) -> int:
        self.outcomes.append(outcome)
        return await self.router.close_turn(outcome)


@dataclass(slots=True)
class Opened:
    turns: Turns
    noting: Noting
    gate: Gate


def build(build_bench: BuildBench, gate: Gate, **fake: object) -> Opened:
    bench = build_bench()
    noting = Noting(bench.router)
    generators = {"fake": FakeGenerator(gate=gate, **fake)}  # type: ignore[arg-type]
    turns = Turns(noting, generators, bench.images, bench.config, complete=complete)
    return Opened(turns, noting, gate)


async def collect(running: RunningTurn) -> list[TurnChunk | TurnFinished]:
    return [event async for event in running.events()]


def opened_gate(after_chunks: int = 0) -> Gate:
    gate = Gate(after_chunks)
    gate.opened.set()
    return gate


async def test_the_router_is_told_all_of_it(build_bench: BuildBench) -> None:
    opened = build(build_bench, opened_gate())
    said = (
        Message("user", (TextPart("Who?"),)),
        Message("assistant", (TextPart("I."),)),
        Message("user", (TextPart("Why?"),)),
    )
    reply = await opened.turns.reply(turn("", input=said, instructions="Be brief."))
    (request,) = opened.noting.requests
    assert (request.input, request.instructions, request.follows, request.text) == (said, "Be brief.", None, "")
    assert reply.message == "Why?"
    assert reply.lease == opened.noting.outcomes[0].turn.lease
    await opened.turns.reply(turn("And?", follows=reply.lease))
    assert opened.noting.requests[1].follows == reply.lease


async def test_a_draft_is_completed_and_stored_with_the_answer(build_bench: BuildBench) -> None:
    opened = build(build_bench, opened_gate())
    reply = await opened.turns.reply(turn(draft=DRAFT))
    record = await opened.noting.router.record(PUBLIC_TENANT, "response", "r-1")
    assert record.body == f'{{"asked":1}}|{reply.response}|stop|{reply.lease}'


async def test_a_turn_that_fails_stores_no_record(build_bench: BuildBench) -> None:
    opened = build(build_bench, opened_gate(), failure=Overloaded("full"), fail_after_chunks=1)
    with pytest.raises(Overloaded):
        await opened.turns.reply(turn(draft=DRAFT))
    with pytest.raises(RecordNotFound):
        await opened.noting.router.record(PUBLIC_TENANT, "response", "r-1")


async def test_stopped_with_a_draft(build_bench: BuildBench) -> None:
    opened = build(build_bench, Gate(2))
    running = opened.turns.run(await opened.turns.open(turn(draft=DRAFT)))
    collecting = asyncio.create_task(collect(running))
    await opened.gate.reached.wait()
    running.stop()
    running.stop()
    *chunks, finished = await collecting
    assert isinstance(finished, TurnFinished)
    assert finished.reply.response == "You asked:"
    assert [event.token_ids for event in chunks if isinstance(event, TurnChunk)] == [(0,), (1,)]
    assert finished.reply.timings.decode_ms >= 0
    record = await opened.noting.router.record(PUBLIC_TENANT, "response", "r-1")
    assert "|You asked:|cancelled|" in record.body


async def test_stopped_before_it_is_run(build_bench: BuildBench) -> None:
    opened = build(build_bench, opened_gate())
    running = opened.turns.run(await opened.turns.open(turn()))
    running.stop()
    (finished,) = await collect(running)
    assert isinstance(finished, TurnFinished)
    assert (finished.reply.response, finished.reply.finish_reason) == ("", "cancelled")
    assert [outcome.answer for outcome in opened.noting.outcomes] == [None]


async def test_a_failure_from_outside(build_bench: BuildBench) -> None:
    opened = build(build_bench, Gate(1))
    running = opened.turns.run(await opened.turns.open(turn()))
    collecting = asyncio.create_task(collect(running))
    await opened.gate.reached.wait()
    running.fail(Overloaded("first"))
    running.fail(Overloaded("second"))
    with pytest.raises(Overloaded, match="first"):
        await collecting
    assert [outcome.answer for outcome in opened.noting.outcomes] == [None]


@pytest.mark.parametrize("after_chunks", [0, 1])
async def test_left_to_somebody_else(build_bench: BuildBench, after_chunks: int) -> None:
    opened = build(build_bench, Gate(after_chunks))
    running = opened.turns.run(await opened.turns.open(turn()))
    collecting = asyncio.create_task(collect(running))
    await opened.gate.reached.wait()
    running.leave()
    assert len(await collecting) == after_chunks
    await opened.gate.left.wait()
    assert opened.noting.outcomes == []


@pytest.mark.parametrize("how", ["stop", "leave"])
async def test_too_late_it_changes_nothing(build_bench: BuildBench, how: str) -> None:
    bench = build_bench(FakeGenerator())
    running = bench.turns.run(await bench.turns.open(turn()))
    finished = None
    async for event in running.events():
        finished = event
        if running.is_answered:
            getattr(running, how)()
    assert isinstance(finished, TurnFinished)
    assert finished.reply.finish_reason == "stop"
    assert await stored(bench) == 2
    assert await open_turns(bench) == 0


async def test_not_ours_any_more(build_bench: BuildBench) -> None:
    opened = build(build_bench, opened_gate())

    async def is_ours() -> bool:
        return False

    running = opened.turns.run(await opened.turns.open(turn()), is_ours=is_ours)
    events = await collect(running)
    assert all(isinstance(event, TurnChunk) for event in events)
    assert opened.noting.outcomes == []
