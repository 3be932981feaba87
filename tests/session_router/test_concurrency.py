"""Turns that meet: on one session, on many, in one process and in two, cancelled and carried to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from deployments.config import parse_config
from deployments.errors import PartUnavailable, SessionBusy
from deployments.record_types import Record
from deployments.session_router.service import Router
from deployments.session_router.stores import Change, SessionKey, StoredSession
from deployments.session_router.stores.memory import MemorySessionStore
from deployments.types import Turn, TurnOutcome

PATIENT = {"lease_wait_s": 30}


async def test_the_second_turn_waits_for_the_first_and_sees_it(open_a_router, store_kind, client, waiting) -> None:
    alice = client(open_a_router(store_kind, **PATIENT))
    first = await alice.open("s", "one")
    second = asyncio.create_task(alice.open("s", "two"))
    await waiting(alice.router, 1)
    assert not second.done()
    await alice.close(first, "1")
    turn = await second
    assert [message.text for message in turn.messages] == ["one", "1", "two"]
    await alice.close(turn, "2")
    assert await alice.texts("s") == ["one", "1", "two", "2"]


async def test_many_turns_on_one_session_go_in_order_of_arrival(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, max_waiting_turns=9, **PATIENT))
    order: list[int] = []
    open_now = 0

    async def say(number: int) -> None:
        nonlocal open_now
        turn = await alice.open("s", f"question {number}")
        open_now += 1
        assert open_now == 1, "two turns of one session are open"
        order.append(number)
        await asyncio.sleep(0)
        open_now -= 1
        await alice.close(turn, f"answer {number}")

    await asyncio.gather(*(say(number) for number in range(10)))
    assert order == list(range(10))
    assert await alice.texts("s") == [f"{what} {number}" for number in range(10) for what in ("question", "answer")]
    assert (await alice.router.statistics())["waiting_turns"] == 0


async def test_fifty_sessions_in_parallel(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind))

    async def converse(number: int) -> list[int]:
        return [await alice.say(f"s{number}", f"{number}/{turn}", f"{number}!{turn}") for turn in range(3)]

    assert await asyncio.gather(*(converse(number) for number in range(50))) == [[2, 4, 6]] * 50
    for number in (0, 17, 49):
        assert await alice.texts(f"s{number}") == [f"{number}{mark}{turn}" for turn in range(3) for mark in "/!"]
    assert len(await alice.router.sessions("tenant", 100)) == 50


async def test_a_turn_that_waits_too_long_is_told_so(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, lease_wait_s=0.05))
    turn = await alice.open("s")
    with pytest.raises(SessionBusy, match=r"waited 0\.05 s"):
        await alice.open("s")
    await alice.close(turn)
    assert await alice.say("s") == 4


async def test_so_many_turns_wait_and_the_next_are_told_at_once(open_a_router, store_kind, client, waiting) -> None:
    alice = client(open_a_router(store_kind, max_waiting_turns=3, **PATIENT))
    first = await alice.open("s", "one")
    waits = {asyncio.create_task(alice.open("s", f"burst {number}")) for number in range(10)}
    refused: set[asyncio.Task[Turn]] = set()
    while len(refused) < 7:
        done, waits = await asyncio.wait(waits, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert done, "they are told long before the wait is over"
        refused |= done
    await waiting(alice.router, 3)
    for task in refused:
        with pytest.raises(SessionBusy, match="no more than 3 may wait") as busy:
            await task
        assert (busy.value.retry_after_s, busy.value.param) == (30, "session_id")
    assert await alice.turns("busy") == 7
    assert await alice.say("another") == 2
    for task in waits:
        task.cancel()
    await asyncio.wait(waits)
    assert await alice.close(first) == 2
    assert await alice.say("s") == 4


async def test_nobody_waits_where_nobody_may(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, max_waiting_turns=0, **PATIENT))
    turn = await alice.open("s")
    async with asyncio.timeout(10):
        with pytest.raises(SessionBusy, match="no more than 0 may wait"):
            await alice.open("s")
    await alice.close(turn)
    assert await alice.say("s") == 4


async def test_whoever_leaves_makes_room_for_another_waiting_turn(open_a_router, store_kind, client, waiting) -> None:
    alice = client(open_a_router(store_kind, max_waiting_turns=1, **PATIENT))
    first = await alice.open("s", "one")
    gone = asyncio.create_task(alice.open("s", "gone"))
    await waiting(alice.router, 1)
    with pytest.raises(SessionBusy):
        await alice.open("s", "too many")
    gone.cancel()
    await asyncio.wait({gone})
    stays = asyncio.create_task(alice.open("s", "two"))
    await waiting(alice.router, 1)
    await alice.close(first, "1")
    await alice.close(await stays, "2")
    assert await alice.texts("s") == ["one", "1", "two", "2"]


async def test_a_waiting_turn_is_woken_when_the_first_fails(slow_store, client, waiting) -> None:
    config = {"models": [{"name": "alpha", "family": "fake"}], "session_router": {"lease_wait_s": 30}}
    alice = client(Router(parse_config(config), slow_store, b"secret"))
    first = await alice.open("s", "one")
    second = asyncio.create_task(alice.open("s", "two"))
    await waiting(alice.router, 1)
    await alice.close(first, None)
    async with asyncio.timeout(10):
        assert [message.text for message in (await second).messages] == ["two"]


async def test_a_waiting_turn_is_woken_by_deletion(open_a_router, store_kind, client, waiting) -> None:
    alice = client(open_a_router(store_kind, **PATIENT))
    await alice.open("s", "one")
    second = asyncio.create_task(alice.open("s", "two"))
    await waiting(alice.router, 1)
    await alice.router.delete_session("tenant", "s")
    async with asyncio.timeout(10):
        assert [message.text for message in (await second).messages] == ["two"]


async def test_a_waiting_turn_takes_over_when_the_lease_runs_out(tmp_path, client) -> None:
    config = {
        "models": [{"name": "alpha", "family": "fake"}],
        "session_router": {"store": "memory", "lease_s": 0.05, "lease_wait_s": 30},
        "ingress": {"turn_timeout_s": 0.04},
    }
    alice = client(Router(parse_config(config), MemorySessionStore(), b"secret"))  # on the real clock
    await alice.open("s", "lost")
    async with asyncio.timeout(10):
        turn = await alice.open("s", "next")
    assert await alice.close(turn) == 2
    assert await alice.turns("expired") == 1


async def test_a_cancelled_waiter_leaves_no_trace(open_a_router, store_kind, client, waiting) -> None:
    alice = client(open_a_router(store_kind, **PATIENT))
    first = await alice.open("s", "one")
    gone = [asyncio.create_task(alice.open("s", f"gone {number}")) for number in range(3)]
    stays = asyncio.create_task(alice.open("s", "two"))
    await waiting(alice.router, 4)
    for task in gone:
        task.cancel()
    assert [type(result) for result in await asyncio.gather(*gone, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 3
    await waiting(alice.router, 1)
    await alice.close(first, "1")
    await alice.close(await stays, "2")
    assert await alice.texts("s") == ["one", "1", "two", "2"]
    statistics = await alice.router.statistics()
    assert (statistics["open_turns"], statistics["waiting_turns"]) == (0, 0)


# ------------------------------------------------------------------------------- a slow store


class SlowStore(MemorySessionStore):
    """Updates wait at a gate, before or after they happen, as they do behind a thread or a network."""

    def __init__(self) -> None:
        super().__init__()
        self.before = asyncio.Event()
        self.after = asyncio.Event()
        self.num_arrived = asyncio.Semaphore(0)
        self.num_updates = 0
        self.is_broken = False
        self.open_gates()

    def open_gates(self) -> None:
        self.before.set()
        self.after.set()

    async def update(
        self,
        key: SessionKey,
        decide: Callable[[StoredSession | None], StoredSession | None],
        records: Sequence[Record] = (),
    ) -> Change:
        self.num_arrived.release()
        self.num_updates += 1
        await self.before.wait()
        if self.is_broken:
            raise PartUnavailable("broken")
        change = await super().update(key, decide, records)
        await self.after.wait()
        return change


@pytest.fixture
def slow_store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def slow(slow_store, client) -> object:
    config = {"models": [{"name": "alpha", "family": "fake"}], "session_router": {"lease_wait_s": 0}}
    return client(Router(parse_config(config), slow_store, b"secret"))


@pytest.mark.parametrize("gate", ["before", "after"])
async def test_cancelled_while_the_store_takes_the_lease(slow, slow_store, gate) -> None:
    getattr(slow_store, gate).clear()
    opening = asyncio.create_task(slow.open("s"))
    await slow_store.num_arrived.acquire()
    opening.cancel()
    await asyncio.sleep(0)
    assert not opening.done(), "the lease is given back first"
    slow_store.open_gates()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert await slow_store.read(SessionKey("tenant", "s")) is None
    assert await slow.say("s") == 2


async def test_cancelled_twice_while_the_store_takes_the_lease(slow, slow_store) -> None:
    slow_store.after.clear()
    opening = asyncio.create_task(slow.open("s"))
    await slow_store.num_arrived.acquire()
    for _ in range(2):
        opening.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await opening
    slow_store.open_gates()
    await slow.router._uninterrupted.finish()
    assert await slow_store.read(SessionKey("tenant", "s")) is None


async def test_cancelled_while_a_store_fails_to_take_the_lease(slow, slow_store) -> None:
    slow_store.before.clear()
    opening = asyncio.create_task(slow.open("s"))
    await slow_store.num_arrived.acquire()
    opening.cancel()
    slow_store.is_broken = True
    slow_store.open_gates()
    with pytest.raises(asyncio.CancelledError):
        await opening
    slow_store.is_broken = False
    assert await slow.say("s") == 2


@pytest.mark.parametrize("answer", ["fine", None])
async def test_a_close_is_carried_to_the_end_when_its_caller_is_cancelled(slow, slow_store, answer) -> None:
    turn = await slow.open("s")
    await slow_store.num_arrived.acquire()
    slow_store.before.clear()
    closing = asyncio.create_task(slow.close(turn, answer))
    await slow_store.num_arrived.acquire()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    finishing = asyncio.create_task(slow.router._uninterrupted.finish())
    slow_store.open_gates()
    await finishing
    assert (await slow_store.count(0)).open_turns == 0
    assert [summary.length for summary in await slow.router.sessions("tenant", 100)] == ([2] if answer else [])


async def test_waiting_on_a_private_store_does_not_poll(slow_store, client, waiting) -> None:
    config = {"models": [{"name": "alpha", "family": "fake"}], "session_router": {"lease_wait_s": 0.5}}
    alice = client(Router(parse_config(config), slow_store, b"secret"))
    first = await alice.open("s")
    second, third = asyncio.create_task(alice.open("s")), asyncio.create_task(alice.open("s"))
    await waiting(alice.router, 2)
    await alice.close(first)
    await second
    with pytest.raises(SessionBusy):
        await third
    assert slow_store.num_updates == 6, "open, try, close, try again; the third's at the start and end of its wait"


# ------------------------------------------------------------------------------- two routers, one store


@pytest.fixture
def pair(open_a_router, shared_kind, client) -> tuple[object, object]:
    """Two routers as two processes have them: each with its own connection and thread, one store underneath."""
    return client(open_a_router(shared_kind, **PATIENT)), client(open_a_router(shared_kind, **PATIENT))


async def test_two_routers_never_hold_one_session_together(pair) -> None:
    open_now = 0

    async def say(number: int) -> None:
        nonlocal open_now
        one = pair[number % 2]
        turn = await one.open("s", f"question {number}")
        open_now += 1
        assert open_now == 1, "two turns of one session are open"
        assert len(turn.messages) % 2 == 1
        open_now -= 1
        await one.close(turn, f"answer {number}")

    await asyncio.gather(*(say(number) for number in range(8)))
    texts = await pair[0].texts("s")
    assert texts == await pair[1].texts("s")
    assert sorted(texts[::2]) == [f"question {number}" for number in range(8)]
    assert [text.replace("question", "answer") for text in texts[::2]] == texts[1::2]


async def test_one_router_waits_for_the_turn_of_the_other(pair, waiting) -> None:
    left, right = pair
    first = await left.open("s", "one")
    second = asyncio.create_task(right.open("s", "two"))
    await waiting(right.router, 1)
    await left.close(first, "1")
    async with asyncio.timeout(10):
        turn = await second
    assert [message.text for message in turn.messages] == ["one", "1", "two"]


async def test_leases_expire_across_routers(pair, clock, open_a_router, shared_kind, client) -> None:
    lost = await pair[0].open("s")
    impatient = client(open_a_router(shared_kind))
    with pytest.raises(SessionBusy):
        await impatient.open("s")
    clock.advance(150)
    successor = await pair[1].open("s", "taken over")
    assert await pair[1].close(successor) == 2
    assert await pair[1].turns("expired") == 1
    assert await pair[0].turns("expired") == 0
    assert await pair[0].router.close_turn(TurnOutcome(lost, None)) == 2


async def test_a_turn_may_be_closed_by_another_router_than_opened_it(pair) -> None:
    turn = await pair[0].open("s")
    assert await pair[1].close(turn) == 2
    assert await pair[0].close(turn) == 2
    await pair[1].router.delete_session("tenant", "s")
    assert await pair[0].router.sessions("tenant", 100) == ()
