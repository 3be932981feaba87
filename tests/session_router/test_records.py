"""Records through the router: stored with an answer or not at all, limited in number and time, private to tenants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deployments.errors import LeaseLost, PartUnavailable, RecordNotFound, SessionNotFound
from deployments.record_types import Record
from deployments.session_router.service import Router
from deployments.session_router.stores import SessionKey
from deployments.types import Turn, TurnOutcome


def record(record_id: str, created_s: float = 1, **fields: object) -> Record:
    return Record("response", record_id, created_s, f'"{record_id}"', **fields)


async def ids(router: Router, tenant: str = "tenant", **fields: object) -> list[str]:
    return [each.id for each in await router.records(tenant, "response", 100, **fields)]


@pytest.fixture
def alice(router: Router, client: type) -> object:
    return client(router)


# ------------------------------------------------------------------------------- the archive


async def test_put_get_list_delete(router: Router) -> None:
    for number in range(3):
        await router.put_record("tenant", record(str(number), number))
    assert await router.record("tenant", "response", "1") == record("1", 1)
    assert await ids(router) == ["2", "1", "0"]
    assert await ids(router, after="2") == ["1", "0"]
    assert await ids(router, after="0", oldest_first=True) == ["1", "2"]
    assert await router.delete_record("tenant", "response", "1") == record("1", 1)
    assert await ids(router) == ["2", "0"]
    assert (await router.statistics())["records"] == 2


@pytest.mark.parametrize("tenant", ["tenant", "other"])
async def test_what_is_not_there_says_so(router: Router, tenant: str) -> None:
    await router.put_record("another", record("a"))
    attempts: list[Callable[[], object]] = [
        lambda: router.record(tenant, "response", "a"),
        lambda: router.delete_record(tenant, "response", "a"),
        lambda: router.records(tenant, "response", 9, "a"),
    ]
    for attempt in attempts:
        with pytest.raises(RecordNotFound, match="no response 'a'") as error:
            await attempt()
        assert (error.value.status, error.value.param) == (404, "response_id")


async def test_expired_records_look_absent_and_are_removed_in_passing(router: Router, clock) -> None:
    await router.put_record("tenant", record("short", expires_s=clock() + 10))
    await router.put_record("other", record("short", expires_s=clock() + 10))
    assert await ids(router) == ["short"]
    clock.advance(10)
    assert await ids(router) == []
    with pytest.raises(RecordNotFound):
        await router.record("tenant", "response", "short")
    assert (await router.statistics())["records"] == 2
    await router.put_record("tenant", record("next"))
    assert (await router.statistics())["records"] == 1


async def test_too_many_push_out_the_oldest_of_their_kind(open_a_router, store_kind, client) -> None:
    alice = client(open_a_router(store_kind, max_records=2))
    await alice.router.put_record("tenant", Record("file", "file", 0, "{}"))
    await alice.router.put_record("other", record("theirs", 0))
    for number in (3, 1, 2):
        await alice.router.put_record("tenant", record(str(number), number))
    assert await ids(alice.router) == ["3", "2"]
    await alice.close(await alice.open("s"), "fine", record("4", 4), record("5", 5))
    assert await ids(alice.router) == ["5", "4"]
    assert (await alice.router.record("tenant", "file", "file")).body == "{}"
    assert await ids(alice.router, "other") == ["theirs"]


async def test_a_restart_keeps_records_and_their_order(open_a_router, shared_kind) -> None:
    before = open_a_router(shared_kind)
    for record_id in "bca":
        await before.put_record("tenant", record(record_id))
    await before.close()
    assert await ids(open_a_router(shared_kind)) == ["a", "c", "b"]


# ------------------------------------------------------------------------------- with an answer


async def test_an_answer_brings_its_records(alice, router: Router) -> None:
    turn = await alice.open("s")
    assert await ids(router) == []
    kept = [record("a", 1), Record("file", "b", 2, "{}", 1e12)]
    assert await alice.close(turn, "fine", *kept) == 2
    assert await router.record("tenant", "response", "a") == kept[0]
    assert await router.record("tenant", "file", "b") == kept[1]


async def test_no_answer_no_records(alice, router: Router) -> None:
    assert await alice.close(await alice.open("s"), None, record("a")) == 0
    await alice.say("s")
    assert await alice.close(await alice.open("s"), None, record("a")) == 2
    assert await ids(router) == []


async def test_a_lost_turn_leaves_no_records(alice, router: Router, clock) -> None:
    lost = await alice.open("s")
    clock.advance(1000)
    await alice.say("s", "taken over")
    with pytest.raises(LeaseLost):
        await alice.close(lost, "late", record("a"))
    deleted = await alice.open("s")
    await router.delete_session("tenant", "s")
    with pytest.raises(LeaseLost):
        await alice.close(deleted, "late", record("a"))
    assert await ids(router) == []


async def test_a_repeated_commit_stores_records_once(alice, router: Router) -> None:
    turn = await alice.open("s")
    await alice.close(turn, "once", record("a"), record("b"))
    await router.delete_record("tenant", "response", "a")
    assert await alice.close(turn, "once", record("a"), record("b")) == 2
    assert await ids(router) == ["b"], "what was deleted since does not come back"
    assert await alice.texts("s") == ["hello", "once"]


async def test_a_record_that_cannot_be_stored_takes_the_answer_with_it(open_a_router, client) -> None:
    alice = client(open_a_router("disk"))
    await alice.say("s")
    turn = await alice.open("s", "more")
    broken = replace(record("b"), body=None)  # NOT NULL fails in the middle of the transaction
    with pytest.raises(PartUnavailable):
        await alice.close(turn, "fine", record("a"), broken)
    assert await ids(alice.router) == []
    assert await alice.texts("s") == ["hello", "fine"]
    assert await alice.close(turn, "fine", record("a")) == 4, "the turn is still open"


async def test_an_answer_that_cannot_be_stored_takes_its_records_with_it(open_a_router, client) -> None:
    alice = client(open_a_router("disk"))
    turn = await alice.open("s")
    store = alice.router._store
    store._thread.submit(store._database.execute, "PRAGMA max_page_count = 1").result()  # a disk that is full
    with pytest.raises(PartUnavailable, match="database or disk is full"):
        await alice.close(turn, "x" * 1_000_000, record("a"))
    assert await ids(alice.router) == []
    store._thread.submit(store._database.execute, "PRAGMA max_page_count = 1000000").result()
    assert await alice.close(turn, "x" * 1_000_000, record("a")) == 2
    assert await ids(alice.router) == ["a"]


async def test_forgetting_a_session_leaves_its_records(alice, router: Router) -> None:
    await alice.close(await alice.open("s"), "fine", record("a"))
    await router.delete_session("tenant", "s")
    assert await ids(router) == ["a"]


# ------------------------------------------------------------------------------- another replica closes


def as_travelled(turn: Turn) -> Turn:
    """An equal object that is another one, as a second ingress replica has it."""
    return replace(turn, messages=tuple(replace(message) for message in turn.messages))


async def test_another_replica_may_close_the_turn(open_a_router, shared_kind, client) -> None:
    first, second = client(open_a_router(shared_kind)), client(open_a_router(shared_kind))
    await first.say("s", "one", "1")
    turn = await first.open("s", "two")
    assert await second.close(as_travelled(turn), "2", record("a")) == 4
    assert await first.close(turn, "2", record("a")) == 4, "the first may find out late"
    assert await first.close(turn, None) == 4
    assert await first.texts("s") == ["one", "1", "two", "2"]
    assert await ids(first.router) == ["a"]
    assert await first.say("s", "three", "3") == 6, "the session is free"


async def test_another_replica_may_give_the_turn_back(open_a_router, shared_kind, client) -> None:
    first, second = client(open_a_router(shared_kind)), client(open_a_router(shared_kind))
    turn = await first.open("s", "one")
    assert await second.close(as_travelled(turn), None) == 0
    with pytest.raises(LeaseLost):
        await first.close(turn, "too late", record("a"))
    with pytest.raises(SessionNotFound):
        await first.texts("s")
    assert await ids(second.router) == []


async def test_outcomes_without_records_are_as_before(alice, router: Router) -> None:
    turn = await alice.open("s")
    assert await router.close_turn(TurnOutcome(turn, "fine")) == 2
    stored = await router._store.read(SessionKey("tenant", "s"))
    assert stored.lease is None
    assert (await router.statistics())["records"] == 0


# ------------------------------------------------------------------------------- the store's limits


async def test_a_commit_whose_tidying_up_fails_is_a_commit(
    alice, router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_args: object, **_named: object) -> int:
        raise PartUnavailable("the store is away")

    monkeypatch.setattr(router._store, "trim_records", fail)
    monkeypatch.setattr(router._store, "evict", fail)
    turn = await alice.open("s", "one")
    assert await alice.close(turn, "1", record("a")) == 2
    await router.put_record("tenant", record("b"))
    assert await alice.texts("s") == ["one", "1"]
    assert set(await ids(router)) == {"a", "b"}
    assert caplog.text.count("the store is away") == 3
