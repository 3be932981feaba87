"""Streams over several replicas: read through any of them, and gone on with when the one that ran them is gone."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace

import pytest
from ingress.bench import turn
from ingress.streams.conftest import BuildWorld
from ingress.streams.faults import Behind, Cable
from ingress.streams.stream_bench import ANSWER, QUICK, WORDS, Replica, World, failed, finished, text_of

from deployments.errors import PartUnavailable
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import KeptEvent, SamplingWish, TurnChunk, TurnFinished
from deployments.types import Chunk

Events = list[tuple[int, KeptEvent]]


def without_timings(events: Events) -> list[object]:
    """What must be equal whoever ran the stream: all but how long it took."""
    return [
        (index, event.reply.response, event.reply.usage, event.reply.conversation_length, event.reply.logprobs)
        if isinstance(event, TurnFinished)
        else (index, event)
        for index, event in events
    ]


async def read_until(replica: Replica, stream_id: str, index: int, after: int = -1) -> Events:
    """The events up to this one; then the reader leaves."""
    events = replica.streams.follow(PUBLIC_TENANT, stream_id, after)
    got: Events = []
    async for event in events:
        got.append(event)
        if event[0] == index:
            break
    await events.aclose()
    return got


async def history(world: World) -> list[str]:
    return [message.text for message in await world.router.history(PUBLIC_TENANT, "s")]


# ------------------------------------------------------------------------------------- reading elsewhere


@pytest.mark.parametrize("after", range(-1, 4))
async def test_read_through_another_replica_from_every_point(world: World, after: int) -> None:
    owner, other = world.replica(FakeGenerator(word_delay_s=0.003)), world.replica()
    stream_id = await owner.begin()
    there, here = await asyncio.gather(owner.follow(stream_id), other.follow(stream_id, after))
    assert here == there[after + 1 :]
    assert text_of(there) == ANSWER
    assert other.counts().get("taken_over", 0) == 0


async def test_stopped_through_another_replica(world: World) -> None:
    gate = Gate(1)
    owner, other = world.replica(FakeGenerator(gate=gate)), world.replica()
    stream_id = await owner.begin()
    await gate.reached.wait()
    await other.stop(stream_id)
    events = await other.follow(stream_id)
    assert finished(events).reply.finish_reason == "cancelled"
    assert await history(world) == ["Hello", WORDS[0]]


@pytest.mark.parametrize("keep_s", [0, 50])
async def test_a_reader_elsewhere_keeps_it(build_world: BuildWorld, keep_s: float) -> None:
    world = build_world(keep_s=keep_s)
    gate = Gate(1)
    slow = replace(QUICK, beat_s=40, stale_s=120)  # hearts beat when this test says so
    owner, other = world.replica(FakeGenerator(gate=gate), pace=slow), world.replica(pace=slow)
    stream_id = await owner.begin()
    events = other.streams.follow(PUBLIC_TENANT, stream_id)
    seen = [await anext(events), await anext(events)]
    reading = asyncio.create_task(anext(events))  # it waits, and says so once
    await gate.reached.wait()
    for _ in range(5):
        await other.streams._heart.beat()
        world.clock.ahead_s += 60  # the sign comes half a beat late
        await owner.streams._heart.beat()
    gate.opened.set()
    seen += [await reading, *[event async for event in events]]
    assert text_of(seen) == ANSWER


# ------------------------------------------------------------------------------------- taken over


def cut_off(world: World, cable: Cable, gate: Gate) -> Replica:
    """A replica that holds its answer at the gate, and that nobody hears of once the cable is cut."""
    behind = functools.partial(Behind, cable=cable)
    return world.replica(FakeGenerator(gate=gate), behind, behind)


@pytest.mark.parametrize("num_words", range(3))
async def test_taken_over_after_each_token(world: World, num_words: int) -> None:
    undisturbed = world.replica()
    asked = turn(session_id="plain", sampling=SamplingWish(num_logprobs=1))
    expected = await undisturbed.follow(await undisturbed.begin(asked))
    cable, gate = world.cable(), Gate(num_words)
    owner, other = cut_off(world, cable, gate), world.replica()
    stream_id = await owner.begin(turn(sampling=SamplingWish(num_logprobs=1)))
    seen = await read_until(owner, stream_id, num_words)
    await gate.reached.wait()
    cable.cut()
    rest = await other.follow(stream_id, num_words)
    assert without_timings(seen + rest)[1:] == without_timings(expected)[1:]
    assert await history(world) == ["Hello", ANSWER]
    assert other.counts()["taken_over"] == 1
    # The owner lives after all: it must see that it is none any more, and leave log and session alone.
    cable.join()
    gate.opened.set()
    await owner.streams.drain()
    assert await other.follow(stream_id) == seen + rest
    assert await history(world) == ["Hello", ANSWER]


@pytest.mark.parametrize("how", ["fails", "is stopped", "is left"])
async def test_an_owner_that_was_replaced_does_not_touch_the_session(build_world: BuildWorld, how: str) -> None:
    world = build_world(keep_s=1 if how == "is left" else 60)
    cable, gate, last = world.cable(), Gate(1), Gate(1)
    behind = functools.partial(Behind, cable=cable)
    failure = PartUnavailable("gone") if how == "fails" else None
    generator = FakeGenerator(gate=gate, failure=failure, fail_after_chunks=2)
    patient = replace(QUICK, stale_s=1000)  # it does not take the stream back
    deaf = replace(QUICK, beat_s=1000)  # it hears of a stop when this test says so
    owner = world.replica(generator, behind, behind, patient)
    other = world.replica(FakeGenerator(gate=last), pace=deaf)
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    reading = asyncio.create_task(other.follow(stream_id))
    await last.reached.wait()
    if how == "is stopped":
        stopping = asyncio.create_task(owner.stop(stream_id))
    gate.opened.set()
    cable.join()
    await owner.streams.drain()
    assert (await world.router.statistics())["open_turns"] == 1
    if how == "is stopped":
        await stopping
        await other.streams._heart.beat()
        assert finished(await reading).reply.finish_reason == "cancelled"
    else:
        last.opened.set()
        assert text_of(await reading) == ANSWER


@pytest.mark.parametrize("deaths", [(1, 1, 1), (0, 0, 2), (2, 0, 3), (3, 3)])
async def test_taken_over_again_and_again(world: World, deaths: tuple[int, ...]) -> None:
    """Each owner dies after so many more words."""
    question = "one two three four five six seven"
    cables = [world.cable() for _ in deaths]
    gates = [Gate(num_words) for num_words in deaths]
    owners = [cut_off(world, cable, gate) for cable, gate in zip(cables, gates, strict=True)]
    reader = world.replica()
    stream_id = await owners[0].begin(turn(question))
    readings = []
    for index, (cable, gate) in enumerate(zip(cables, gates, strict=True)):
        await gate.reached.wait()
        cable.cut()
        if index + 1 < len(owners):
            readings.append(asyncio.create_task(owners[index + 1].follow(stream_id)))
    events = await reader.follow(stream_id)
    assert [index for index, _ in events] == list(range(len(events)))
    assert text_of(events) == f'You asked: "{question}".' == finished(events).reply.response
    assert finished(events).reply.usage.completion_tokens == 9
    for cable in cables:
        cable.join()
    for reading in readings:
        assert await reading == events


async def test_a_commit_before_the_death_is_not_repeated(world: World) -> None:
    cable = world.cable()

    class CutAtCommit:
        def __init__(self, router: object) -> None:
            self.open_turn = router.open_turn  # type: ignore[attr-defined]
            self._router = router

        async def close_turn(self, outcome: object) -> int:
            length: int = await self._router.close_turn(outcome)  # type: ignore[attr-defined]
            cable.cut()
            return length

    owner = world.replica(None, functools.partial(Behind, cable=cable), CutAtCommit)
    other = world.replica()
    stream_id = await owner.begin()
    events = await other.follow(stream_id)
    assert text_of(events) == ANSWER == finished(events).reply.response
    assert await history(world) == ["Hello", ANSWER]
    assert other.counts()["taken_over"] == 1


async def test_only_one_replica_takes_over(world: World) -> None:
    cable, gate = world.cable(), Gate(1)
    owner = cut_off(world, cable, gate)
    others = [world.replica(FakeGenerator(word_delay_s=0.003)) for _ in range(3)]
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    read = await asyncio.gather(*(other.follow(stream_id) for other in others))
    assert read[0] == read[1] == read[2]
    assert text_of(read[0]) == ANSWER
    assert sum(other.counts().get("taken_over", 0) for other in others) == 1


async def test_a_stop_that_the_owner_did_not_live_to_see(world: World) -> None:
    cable, gate = world.cable(), Gate(2)
    owner, other = cut_off(world, cable, gate), world.replica()
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    await other.stop(stream_id)
    reply = finished(await other.follow(stream_id)).reply
    assert (reply.response, reply.finish_reason) == ("".join(WORDS[:2]), "cancelled")
    assert reply.usage.completion_tokens == 2
    assert reply.usage.prompt_tokens > 0


async def test_stopping_what_nobody_runs_gives_the_session_back(world: World) -> None:
    cable, gate = world.cable(), Gate(0)
    owner, other = cut_off(world, cable, gate), world.replica()
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    world.clock.ahead_s = 1  # nobody reads, so nobody has noticed yet
    await other.stop(stream_id)
    await other.streams.drain()
    assert (await world.router.statistics())["open_turns"] == 0
    assert finished(await other.follow(stream_id)).reply.finish_reason == "cancelled"


async def test_the_turns_deadline_counts_from_its_beginning(build_world: BuildWorld) -> None:
    world = build_world({"turn_timeout_s": 20})
    cable, gate = world.cable(), Gate(1)
    owner, other = cut_off(world, cable, gate), world.replica()
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    world.clock.ahead_s = 21
    assert failed(await other.follow(stream_id)).code == "deadline_exceeded"
    assert (await world.router.statistics())["open_turns"] == 0


async def test_a_background_stream_needs_no_reader_to_be_taken_over(world: World) -> None:
    cable, gate = world.cable(), Gate(1)
    owner, other = cut_off(world, cable, gate), world.replica()
    stream_id = await owner.begin(is_background=True)
    await gate.reached.wait()
    cable.cut()
    other.streams.start()
    async with asyncio.timeout(10):
        while other.counts().get("taken_over") != 1:  # noqa: ASYNC110 - it shows no event
            await asyncio.sleep(0.01)
    assert text_of(await other.follow(stream_id)) == ANSWER


async def test_chance_goes_on_by_its_seed(world: World) -> None:
    seeds = []

    class Noting(FakeGenerator):
        async def stream(self, request):  # type: ignore[no-untyped-def]
            seeds.append(request.sampling.seed)
            async for chunk in super().stream(request):
                yield chunk

    cable, gate = world.cable(), Gate(1)
    behind = functools.partial(Behind, cable=cable)
    owner, other = world.replica(Noting(gate=gate), behind, behind), world.replica(Noting())
    stream_id = await owner.begin(turn(sampling=SamplingWish(temperature=1.0)))
    await gate.reached.wait()
    cable.cut()
    await other.follow(stream_id)
    assert seeds[0] is not None
    assert seeds == [seeds[0]] * 2


async def test_a_model_without_token_ids_cannot_be_gone_on_with(world: World) -> None:
    class Hosted(FakeGenerator):
        async def stream(self, request):  # type: ignore[no-untyped-def]
            async for chunk in super().stream(request):
                yield Chunk(chunk.text, chunk.num_tokens, chunk.finish_reason, chunk.usage, chunk.timings)

    cable, gate = world.cable(), Gate(1)
    behind = functools.partial(Behind, cable=cable)
    owner, other = world.replica(Hosted(gate=gate), behind, behind), world.replica(Hosted())
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    events = await other.follow(stream_id)
    assert failed(events).code == "part_unavailable"
    assert isinstance(events[1][1], TurnChunk)
    assert (await world.router.statistics())["open_turns"] == 0


# ------------------------------------------------------------------------------------- generators that die


@pytest.mark.parametrize("after_chunks", range(1, 3))
async def test_a_generator_that_dies_is_replaced(world: World, after_chunks: int) -> None:
    dying = FakeGenerator(failure=PartUnavailable("died"), fail_after_chunks=after_chunks, max_failures=1)
    replica = world.replica(dying)
    events = await replica.follow(await replica.begin())
    assert text_of(events) == ANSWER
    assert finished(events).reply.usage.completion_tokens == 3
    await replica.streams.drain()
    assert await dying.statistics() == {"running": 0, "stop": 1, "length": 0, "cancelled": 0, "failed": 1}


async def test_a_generator_that_always_dies_is_given_up(world: World) -> None:
    replica = world.replica(FakeGenerator(failure=PartUnavailable("died"), fail_after_chunks=0))
    events = await replica.follow(await replica.begin())
    assert failed(events).code == "part_unavailable"
    assert (await world.router.statistics())["open_turns"] == 0


# ------------------------------------------------------------------------------------- taken down


async def test_a_replica_that_is_taken_down_finishes_what_is_read(world: World) -> None:
    replica = world.replica(FakeGenerator(word_delay_s=0.01))
    stream_id = await replica.begin()
    reading = asyncio.create_task(replica.follow(stream_id))
    await asyncio.sleep(0.005)
    await replica.streams.drain()
    assert text_of(await reading) == ANSWER


async def test_a_replica_that_is_taken_down_leaves_the_rest_to_others(build_world: BuildWorld, store_kind: str) -> None:
    world = build_world()
    gate = Gate(1)
    replica, other = world.replica(FakeGenerator(gate=gate)), world.replica()
    stream_id = await replica.begin()
    await gate.reached.wait()
    async with asyncio.timeout(10):
        await replica.streams.drain()
    events = await other.follow(stream_id)
    if store_kind == "disk":
        assert text_of(events) == ANSWER
        assert await history(world) == ["Hello", ANSWER]
    else:  # nobody else could read it
        assert failed(events).code == "stream_abandoned"
        assert (await world.router.statistics())["open_turns"] == 0
