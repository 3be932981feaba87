"""What every session store must do; a new kind joins by one line in STORES of conftest.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.session_router.stores import Change, Lease, SessionCounts, SessionKey, SessionStore, StoredSession
from deployments.types import SessionSummary

KEY = SessionKey("tenant", "session")
StoreOpener = Callable[[str, Path], SessionStore]


@pytest.fixture
async def store(open_store: StoreOpener, store_kind: str, tmp_path: Path) -> AsyncIterator[SessionStore]:
    opened = open_store(store_kind, tmp_path / "sessions")
    yield opened
    await opened.close()


def told(session_id: str, used_s: float, lease: Lease | None = None) -> StoredSession:
    summary = SessionSummary(session_id, 2, session_id.startswith("seen"), "alpha", "2025-01-01T12:00:00.000Z")
    return StoredSession(used_s, b"\x00\xff" + session_id.encode(), summary, lease)


async def put(store: SessionStore, session_id: str, used_s: float = 1, lease: Lease | None = None) -> StoredSession:
    stored = told(session_id, used_s, lease)
    await store.update(SessionKey("tenant", session_id), lambda before: stored)
    return stored


async def test_what_is_stored_is_read(store: SessionStore) -> None:
    assert await store.read(KEY) is None
    for stored in (
        StoredSession(1.25, lease=Lease("token", 2.5)),
        told("session", 3.5, Lease("token", 4.5)),
        told("session", 3.5),
        replace(told("session", 5), conversation=bytes(range(256)) * 4096),
    ):
        change = await store.update(KEY, lambda before, stored=stored: stored)
        assert change.after == stored
        assert await store.read(KEY) == stored


async def test_update_tells_what_was_and_what_is(store: SessionStore) -> None:
    first = told("session", 1)
    assert await store.update(KEY, lambda before: first if before is None else None) == Change(None, first)
    change = await store.update(KEY, lambda before: before)
    assert change.after is change.before
    assert change.after == first
    assert await store.update(KEY, lambda before: None) == Change(first, None)
    assert await store.update(KEY, lambda before: None) == Change(None, None)
    assert await store.read(KEY) is None


async def test_what_decide_raises_is_raised_and_nothing_stored(store: SessionStore) -> None:
    stored = await put(store, "session")

    def decide(before: StoredSession | None) -> StoredSession:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        await store.update(KEY, decide)
    assert await store.read(KEY) == stored
    await store.update(KEY, lambda before: None)  # and the store is still usable


async def test_updates_do_not_overtake_each_other(store: SessionStore) -> None:
    def one_more(before: StoredSession | None) -> StoredSession:
        return StoredSession(before.used_s + 1 if before else 1)

    await asyncio.gather(*(store.update(KEY, one_more) for _ in range(50)))
    stored = await store.read(KEY)
    assert stored is not None
    assert stored.used_s == 50


async def test_tenants_do_not_see_each_other(store: SessionStore) -> None:
    await put(store, "session")
    assert await store.read(SessionKey("other", "session")) is None
    assert await store.summaries("other", 100) == ()
    await store.evict("other", 0, now_s=10)
    assert await store.read(KEY) is not None


async def test_summaries_come_last_used_first_without_uncommitted_sessions(store: SessionStore) -> None:
    for session_id, used_s in (("old", 1), ("seen-new", 3), ("middle", 2)):
        await put(store, session_id, used_s)
    await store.update(SessionKey("tenant", "pending"), lambda before: StoredSession(9, lease=Lease("token", 99)))
    assert await store.summaries("tenant", 100) == tuple(
        told(session_id, 0).summary for session_id in ("seen-new", "middle", "old")
    )
    await put(store, "old", 4)
    assert [summary.session_id for summary in await store.summaries("tenant", 100)] == ["old", "seen-new", "middle"]


async def test_summaries_are_limited_to_those_used_last(store: SessionStore) -> None:
    for used_s in (1, 3, 2):
        await put(store, f"used-{used_s}", used_s)
    await store.update(SessionKey("tenant", "pending"), lambda before: StoredSession(9, lease=Lease("token", 99)))
    for limit, expected in ((2, ["used-3", "used-2"]), (3, ["used-3", "used-2", "used-1"]), (0, []), (-1, [])):
        assert [summary.session_id for summary in await store.summaries("tenant", limit)] == expected


async def test_eviction_takes_the_longest_unused_that_nobody_holds(store: SessionStore) -> None:
    await put(store, "held", 1, Lease("token", until_s=100))
    await put(store, "outlived", 2, Lease("token", until_s=10))
    for used_s in (5, 3, 4):
        await put(store, f"used-{used_s}", used_s)
    assert await store.evict("tenant", 5, now_s=10) == 0
    assert await store.evict("tenant", 3, now_s=10) == 2
    assert [summary.session_id for summary in await store.summaries("tenant", 100)] == ["used-5", "used-4", "held"]
    assert await store.evict("tenant", 0, now_s=10) == 2
    assert [summary.session_id for summary in await store.summaries("tenant", 100)] == ["held"]


async def test_counts(store: SessionStore) -> None:
    assert await store.count(now_s=0) == SessionCounts(0, 0)
    await put(store, "committed", 1)
    await put(store, "open", 2, Lease("token", until_s=100))
    await store.update(SessionKey("other", "pending"), lambda before: StoredSession(9, lease=Lease("token", 50)))
    assert await store.count(now_s=49) == SessionCounts(sessions=2, open_turns=2)
    assert await store.count(now_s=50) == SessionCounts(sessions=2, open_turns=1)


async def test_closing_again_does_nothing(store: SessionStore) -> None:
    await store.close()
    await store.close()
