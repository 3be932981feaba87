"""Kept streams in one replica: read from any point, by several readers, stopped, given up."""

from __future__ import annotations

import asyncio

import pytest
from ingress.bench import turn
from ingress.streams.stream_bench import ANSWER, WORDS, World, failed, finished, text_of

from deployments.errors import InvalidRequest, Overloaded, SessionNotFound, StreamNotFound, UnknownModel
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import TurnStarted


async def num_stored(world: World, session_id: str = "s") -> int:
    try:
        return len(await world.router.history(PUBLIC_TENANT, session_id))
    except SessionNotFound:
        return 0


async def num_open(world: World) -> object:
    return (await world.router.statistics())["open_turns"]


async def test_a_stream_is_the_turn(world: World) -> None:
    replica = world.replica()
    stream_id = await replica.begin()
    events = await replica.follow(stream_id)
    assert [index for index, _ in events] == list(range(5))
    assert events[0][1] == TurnStarted("s", "fake", stream_id)
    assert text_of(events) == ANSWER == finished(events).reply.response
    assert finished(events).reply.conversation_length == 2
    assert await num_stored(world) == 2


@pytest.mark.parametrize("after", range(-1, 5))
async def test_an_ended_stream_can_be_read_from_every_point(world: World, after: int) -> None:
    replica = world.replica()
    stream_id = await replica.begin()
    whole = await replica.follow(stream_id)
    assert await replica.follow(stream_id, after) == whole[after + 1 :]
    assert await replica.streams.check(PUBLIC_TENANT, stream_id, after) == (after < 4)


@pytest.mark.parametrize("after", [-2, 5, 1000, 2**63, pytest.param(10**3000, id="huge")])
async def test_events_that_are_not_there_yet_cannot_have_been_seen(world: World, after: int) -> None:
    replica = world.replica()
    stream_id = await replica.begin()
    await replica.follow(stream_id)
    with pytest.raises(InvalidRequest, match="5 events"):
        await replica.streams.check(PUBLIC_TENANT, stream_id, after)


async def test_start_comes_before_the_first_token(world: World) -> None:
    gate = Gate()
    replica = world.replica(FakeGenerator(gate=gate))
    stream_id = await replica.begin()
    events = replica.streams.follow(PUBLIC_TENANT, stream_id)
    assert isinstance((await anext(events))[1], TurnStarted)
    await gate.reached.wait()
    gate.opened.set()
    assert text_of([event async for event in events]) == ANSWER


async def test_what_opening_raises_is_raised_and_nothing_is_kept(world: World) -> None:
    replica = world.replica()
    with pytest.raises(UnknownModel):
        await replica.begin(turn(model="none"))
    assert (await replica.streams.statistics())["running"] == 0


async def test_stopped_before_the_first_token(world: World) -> None:
    gate = Gate()
    generator = FakeGenerator(gate=gate)
    replica = world.replica(generator)
    stream_id = await replica.begin()
    await gate.reached.wait()
    await replica.stop(stream_id)
    events = await replica.follow(stream_id)
    assert [type(event) for _, event in events][1:] == [type(finished(events))]
    reply = finished(events).reply
    assert (reply.response, reply.finish_reason, reply.conversation_length) == ("", "cancelled", 0)
    assert (await generator.statistics())["cancelled"] == 1
    assert await num_stored(world) == await num_open(world) == 0
    await replica.stop(stream_id)
    assert await replica.follow(stream_id) == events
    assert replica.counts() == {"kept": 1, "stopped": 1}


@pytest.mark.parametrize("after_chunks", [1, 2])
async def test_stopped_in_the_middle(world: World, after_chunks: int) -> None:
    gate = Gate(after_chunks)
    replica = world.replica(FakeGenerator(gate=gate))
    stream_id = await replica.begin()
    await gate.reached.wait()
    await replica.stop(stream_id)
    await replica.stop(stream_id)
    events = await replica.follow(stream_id)
    reply = finished(events).reply
    assert text_of(events) == reply.response == "".join(WORDS[:after_chunks])
    assert reply.finish_reason == "cancelled"
    assert reply.usage.completion_tokens == after_chunks
    assert reply.usage.prompt_tokens > 0
    history = await world.router.history(PUBLIC_TENANT, "s")
    assert [message.text for message in history] == ["Hello", reply.response]
    assert await num_open(world) == 0


async def test_stopping_what_has_ended_changes_nothing(world: World) -> None:
    replica = world.replica()
    stream_id = await replica.begin()
    events = await replica.follow(stream_id)
    await replica.stop(stream_id)
    assert await replica.follow(stream_id) == events
    assert await num_stored(world) == 2


async def test_ids_of_others_are_ids_that_do_not_exist(world: World) -> None:
    replica = world.replica()
    stream_id = await replica.begin()
    for tenant, name in (("other", stream_id), (PUBLIC_TENANT, "none")):
        with pytest.raises(StreamNotFound, match="resumable"):
            await replica.streams.check(tenant, name)
        with pytest.raises(StreamNotFound):
            await replica.streams.stop(tenant, name)
        with pytest.raises(StreamNotFound):
            await anext(replica.streams.follow(tenant, name))
    assert text_of(await replica.follow(stream_id)) == ANSWER


async def test_two_readers_at_their_own_pace(world: World) -> None:
    replica = world.replica(FakeGenerator(word_delay_s=0.005))
    stream_id = await replica.begin()
    slow = replica.streams.follow(PUBLIC_TENANT, stream_id)
    first = await anext(slow)
    quick = await replica.follow(stream_id)
    assert [first, *[event async for event in slow]] == quick


async def test_a_failure_is_the_last_event(world: World) -> None:
    failing = FakeGenerator(failure=Overloaded("full", "message"), fail_after_chunks=2)
    replica = world.replica(failing)
    stream_id = await replica.begin()
    events = await replica.follow(stream_id)
    assert text_of(events) == "".join(WORDS[:2])
    assert (failed(events).code, failed(events).param, failed(events).status) == ("overloaded", "message", 503)
    assert await num_stored(world) == await num_open(world) == 0


async def test_without_a_reader_it_is_given_up(build_world) -> None:
    world = build_world(keep_s=0.05)
    gate = Gate(1)
    generator = FakeGenerator(gate=gate)
    replica = world.replica(generator)
    stream_id = await replica.begin()
    async with asyncio.timeout(10):
        await gate.left.wait()
    events = await replica.follow(stream_id)
    assert failed(events).code == "stream_abandoned"
    assert "ingress.streams.keep_s" in failed(events).message
    assert await num_stored(world) == await num_open(world) == 0
    assert replica.counts() == {"kept": 1, "abandoned": 1}


async def test_a_reader_keeps_it_and_so_does_the_background(build_world) -> None:
    world = build_world(keep_s=0.05)
    gate = Gate(1)
    replica = world.replica(FakeGenerator(gate=gate))
    read = await replica.begin(turn(session_id="read"))
    background = await replica.begin(turn(session_id="background"), is_background=True)
    reading = asyncio.create_task(replica.follow(read))
    await gate.reached.wait()
    world.clock.ahead_s = 100  # far beyond keep_s
    await asyncio.sleep(0.05)  # some heartbeats
    gate.opened.set()
    assert text_of(await reading) == ANSWER
    assert text_of(await replica.follow(background)) == ANSWER


async def test_no_more_than_max_streams(build_world) -> None:
    world = build_world(max_streams=2, retain_s=50)
    replica = world.replica()
    for session_id in "ab":
        await replica.follow(await replica.begin(turn(session_id=session_id)))
    with pytest.raises(Overloaded, match=r"ingress\.streams\.max_streams"):
        await replica.begin(turn(session_id="c"))
    assert await num_open(world) == 0
    world.clock.ahead_s = 51
    await replica.begin(turn(session_id="c"))


async def test_it_can_be_read_for_retain_s(build_world) -> None:
    world = build_world(retain_s=50)
    replica = world.replica()
    stream_id = await replica.begin()
    await replica.follow(stream_id)
    world.clock.ahead_s = 49
    assert text_of(await replica.follow(stream_id)) == ANSWER
    world.clock.ahead_s = 51
    with pytest.raises(StreamNotFound):
        await replica.streams.check(PUBLIC_TENANT, stream_id)
