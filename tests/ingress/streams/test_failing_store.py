"""A store that fails for a moment or for longer: nothing is lost, nothing hangs, and what is left behind is ended."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from ingress.streams.faults import Behind
from ingress.streams.stream_bench import ANSWER, World, failed, text_of
from tenacity import stop_after_attempt

from deployments.errors import PartUnavailable
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress.streams import live_stream
from deployments.ingress.streams.log_entry import Entry, entry_to_json
from deployments.ingress.streams.stores import Hold, NewLog, StreamKey
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import TurnStarted


@dataclass(slots=True)
class Failing:
    """Fails as often as a test says."""

    store: Any
    num_failures: int = 0
    methods: frozenset[str] = frozenset({"append"})
    failed: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def append(self, hold: Hold, entries: Sequence[str], ended_until_s: float | None = None) -> None:
        self._fail("append")
        await self.store.append(hold, entries, ended_until_s)

    async def create(self, new: NewLog, entry: str, max_logs: int, now_s: float) -> Hold:
        self._fail("create")
        hold: Hold = await self.store.create(new, entry, max_logs, now_s)
        return hold

    async def beat(self, owner: str, now_s: float, expires_s: float) -> Any:
        self._fail("beat")
        return await self.store.beat(owner, now_s, expires_s)

    def _fail(self, method: str) -> None:
        if method in self.methods and self.num_failures > 0:
            self.num_failures -= 1
            self.failed.set()
            raise PartUnavailable("the store is away")


async def test_a_moment_is_ridden_out(world: World) -> None:
    failing = Failing(world.store, 2)
    replica = world.replica(wrap_store=lambda store: failing)
    assert text_of(await replica.follow(await replica.begin())) == ANSWER
    assert failing.num_failures == 0


async def test_a_stream_that_cannot_be_kept_is_not_begun(world: World) -> None:
    failing = Failing(world.store, 1, frozenset({"create"}))
    replica = world.replica(wrap_store=lambda store: failing)
    with pytest.raises(PartUnavailable, match="away"):
        await replica.begin()
    assert (await world.router.statistics())["open_turns"] == 0
    assert text_of(await replica.follow(await replica.begin())) == ANSWER


async def test_heartbeats_that_fail_are_made_up_for(world: World) -> None:
    gate = Gate(1)
    failing = Failing(world.store, 3, frozenset({"beat"}))
    replica = world.replica(FakeGenerator(gate=gate), wrap_store=lambda store: failing)
    stream_id = await replica.begin()
    async with asyncio.timeout(10):
        await failing.failed.wait()
        while failing.num_failures:  # noqa: ASYNC110 - it shows no event
            await asyncio.sleep(0.005)
    gate.opened.set()
    assert text_of(await replica.follow(stream_id)) == ANSWER


class HeldTakeOver(Failing):
    """Tells of a take-over that was made, and holds its answer back."""

    async def take_over(self, hold: Hold, owner: str, now_s: float, alive_before_s: float) -> Any:
        taken = await self.store.take_over(hold, owner, now_s, alive_before_s)
        self.failed.set()
        await asyncio.sleep(0.05)  # some heartbeats, too
        return taken


async def test_a_reader_that_leaves_in_the_instant_of_the_take_over(world: World) -> None:
    gate, cable = Gate(1), world.cable()
    owner = world.replica(FakeGenerator(gate=gate), functools.partial(Behind, cable=cable))
    held = HeldTakeOver(world.store)
    other = world.replica(wrap_store=lambda store: held)
    stream_id = await owner.begin()
    await gate.reached.wait()
    cable.cut()
    reading = asyncio.create_task(other.follow(stream_id))
    await held.failed.wait()
    reading.cancel()
    await asyncio.wait({reading})
    assert text_of(await other.follow(stream_id)) == ANSWER


async def test_a_plan_that_cannot_be_read_ends_its_stream_and_holds_up_no_other(world: World) -> None:
    for number in range(3):
        key = StreamKey(PUBLIC_TENANT, f"old-{number}")
        new = NewLog(key, "a replica of another version", "{}", True, world.clock() + 100)
        await world.store.create(new, entry_to_json(Entry(TurnStarted("s", "fake", key.stream_id))), 9, 0)
    replica = world.replica()
    replica.streams.start()
    async with asyncio.timeout(10):
        for number in range(3):
            assert failed(await replica.follow(f"old-{number}")).code == "internal_error"
    assert text_of(await replica.follow(await replica.begin())) == ANSWER


async def test_readers_hear_of_a_store_that_stays_away_and_the_log_is_ended_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_stream._append_at_last.retry, "stop", stop_after_attempt(1))
    gate = Gate(1)
    failing = Failing(world.store)
    replica = world.replica(FakeGenerator(gate=gate), wrap_store=lambda store: failing)
    stream_id = await replica.begin()
    reading = asyncio.create_task(replica.follow(stream_id))
    await gate.reached.wait()
    failing.num_failures = 6  # of a token, of whose the session is, and of the failure: each twice
    gate.opened.set()
    assert failed(await reading).code == "part_unavailable"
    other = world.replica()
    async with asyncio.timeout(10):
        events = await other.follow(stream_id)
    assert text_of(events) == "You"
    assert failed(events).code in ("part_unavailable", "internal_error")
