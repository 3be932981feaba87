"""What every store must do with records: kept by tenant, kind and id, listed in one order, put together with a turn."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.record_types import Record, RecordKind
from deployments.session_router.stores import Lease, RecordKey, SessionKey, SessionStore, StoredSession

KEY = SessionKey("tenant", "session")
StoreOpener = Callable[[str, Path], SessionStore]


@pytest.fixture
async def store(open_store: StoreOpener, store_kind: str, tmp_path: Path) -> AsyncIterator[SessionStore]:
    opened = open_store(store_kind, tmp_path / "sessions")
    yield opened
    await opened.close()


def record(
    record_id: str, created_s: float = 1.25, expires_s: float | None = None, kind: RecordKind = "response"
) -> Record:
    return Record(kind, record_id, created_s, f'{{"id": "{record_id}", "text": "日本"}}', expires_s)


async def read(
    store: SessionStore, record_id: str, tenant: str = "tenant", kind: RecordKind = "response", now_s: float = 0
) -> Record | None:
    return await store.read_record(RecordKey(tenant, kind, record_id), now_s)


async def ids(
    store: SessionStore,
    limit: int = 100,
    after: str | None = None,
    *,
    oldest_first: bool = False,
    tenant: str = "tenant",
    kind: RecordKind = "response",
    now_s: float = 0,
) -> list[str] | None:
    page = await store.list_records(tenant, kind, limit, after, oldest_first=oldest_first, now_s=now_s)
    return None if page is None else [each.id for each in page]


async def test_what_is_put_is_read(store: SessionStore) -> None:
    assert await read(store, "a") is None
    for each in (record("a"), record("a", 2.5, 3.5), Record("response", "a", 4, "{}" + "x" * 1_000_000)):
        await store.put_record("tenant", each)
        assert await read(store, "a") == each
        assert await store.list_records("tenant", "response", 9, None, oldest_first=False, now_s=0) == (each,)


async def test_tenants_and_kinds_do_not_see_each_other(store: SessionStore) -> None:
    await store.put_record("tenant", record("a"))
    for tenant, kind in (("other", "response"), ("tenant", "file")):
        assert await read(store, "a", tenant, kind) is None
        assert await ids(store, tenant=tenant, kind=kind) == []
        assert await ids(store, after="a", tenant=tenant, kind=kind) is None
        assert await store.delete_record(RecordKey(tenant, kind, "a"), 0) is None
        assert await store.trim_records(tenant, kind, 0, 0) == 0
    assert await read(store, "a") == record("a")
    await store.put_record("other", record("a", 7))
    await store.put_record("tenant", record("a", 8, kind="file"))
    assert await read(store, "a") == record("a")


async def test_a_deleted_record_is_told_and_gone(store: SessionStore) -> None:
    await store.put_record("tenant", record("a"))
    await store.put_record("tenant", record("b"))
    key = RecordKey("tenant", "response", "a")
    assert await store.delete_record(key, 0) == record("a")
    assert await store.delete_record(key, 0) is None
    assert await read(store, "a") is None
    assert await ids(store) == ["b"]


async def test_lists_go_by_creation_then_by_storing(store: SessionStore) -> None:
    for record_id, created_s in (("c1", 3), ("a", 1), ("c2", 3), ("b", 2), ("c0", 3)):
        await store.put_record("tenant", record(record_id, created_s))
    assert await ids(store) == ["c0", "c2", "c1", "b", "a"]
    assert await ids(store, oldest_first=True) == ["a", "b", "c1", "c2", "c0"]
    await store.put_record("tenant", record("c1", 3))  # again: now it is stored last
    await store.put_record("tenant", record("b", 0))
    assert await ids(store, oldest_first=True) == ["b", "a", "c2", "c0", "c1"]


async def test_pages(store: SessionStore) -> None:
    for number in range(5):
        await store.put_record("tenant", record(str(number), number))
    assert await ids(store, 2) == ["4", "3"]
    assert await ids(store, 2, "3") == ["2", "1"]
    assert await ids(store, 2, "1") == ["0"]
    assert await ids(store, 2, "0") == []
    assert await ids(store, 2, "0", oldest_first=True) == ["1", "2"]
    assert await ids(store, 0) == []
    assert await ids(store, -1) == []
    assert await ids(store, 0, "nowhere") is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    created=st.lists(st.integers(0, 3), max_size=12),
    limit=st.integers(1, 4),
    oldest_first=st.booleans(),
    removed=st.sets(st.integers(0, 11)),
)
async def test_pages_together_are_the_list(
    store: SessionStore, created: list[int], limit: int, oldest_first: bool, removed: set[int]
) -> None:
    await store.trim_records("tenant", "response", 0, 0)
    for number, created_s in enumerate(created):
        await store.put_record("tenant", record(str(number), created_s))
    for number in removed:
        await store.delete_record(RecordKey("tenant", "response", str(number)), 0)
    left = [number for number in range(len(created)) if number not in removed]
    expected = [str(number) for number in sorted(left, key=lambda number: (created[number], number))]
    paged: list[str] = []
    while page := await ids(store, limit, paged[-1] if paged else None, oldest_first=oldest_first):
        assert len(page) <= limit
        paged += page
    assert paged == (expected if oldest_first else expected[::-1])


async def test_from_its_time_on_a_record_looks_absent(store: SessionStore) -> None:
    await store.put_record("tenant", record("short", 1, expires_s=10.5))
    await store.put_record("tenant", record("long", 2))
    just_before = math.nextafter(10.5, 0)
    assert await ids(store, now_s=just_before) == ["long", "short"]
    assert await read(store, "short", now_s=just_before) is not None
    assert await ids(store, now_s=10.5) == ["long"]
    assert await ids(store, 1, oldest_first=True, now_s=10.5) == ["long"], "a page is not shorter for what is hidden"
    assert await ids(store, after="short", now_s=10.5) is None
    assert await read(store, "short", now_s=10.5) is None
    assert await store.delete_record(RecordKey("tenant", "response", "short"), 10.5) is None


async def test_trimming_takes_the_past_of_everybody_and_the_oldest_of_one(store: SessionStore) -> None:
    for number in (3, 1, 2, 0, 4):
        await store.put_record("tenant", record(str(number), number))
    await store.put_record("tenant", record("past", 9, expires_s=5))
    await store.put_record("other", record("past", 9, expires_s=5, kind="file"))
    await store.put_record("other", record("kept", 0, expires_s=5.5))
    assert (await store.count(0)).records == 8
    assert await store.trim_records("tenant", "response", 5, now_s=5) == 2
    assert await ids(store) == ["4", "3", "2", "1", "0"]
    assert await store.trim_records("tenant", "response", 2, now_s=5) == 3
    assert await ids(store) == ["4", "3"]
    assert await ids(store, tenant="other") == ["kept"]
    assert (await store.count(0)).records == 3
    assert await store.trim_records("tenant", "response", 9, now_s=5) == 0


async def test_of_equally_old_ones_the_first_stored_goes_first(store: SessionStore) -> None:
    for record_id in "bca":
        await store.put_record("tenant", record(record_id, 1))
    await store.trim_records("tenant", "response", 1, now_s=0)
    assert await ids(store) == ["a"]


# ------------------------------------------------------------------------------- together with a session


async def test_records_are_put_together_with_a_change(store: SessionStore) -> None:
    stored = StoredSession(1, lease=Lease("token", 2))
    change = await store.update(KEY, lambda before: stored, (record("a"), record("b", 2, kind="file"), record("c")))
    assert change.after == stored
    assert await ids(store) == ["c", "a"]
    assert await read(store, "b", kind="file") == record("b", 2, kind="file")
    assert await read(store, "a", tenant="other") is None


async def test_a_session_left_alone_puts_nothing(store: SessionStore) -> None:
    await store.update(KEY, lambda before: None, (record("a"),))
    await store.update(KEY, lambda before: StoredSession(1))
    await store.update(KEY, lambda before: before, (record("a"),))
    assert await ids(store) == []


async def test_what_decide_raises_puts_nothing(store: SessionStore) -> None:
    def decide(before: StoredSession | None) -> StoredSession:
        raise KeyError("no")

    with pytest.raises(KeyError):
        await store.update(KEY, decide, (record("a"),))
    assert await ids(store) == []
    assert (await store.count(0)).records == 0


async def test_deleting_a_session_leaves_records(store: SessionStore) -> None:
    await store.update(KEY, lambda before: StoredSession(1), (record("a"),))
    await store.update(KEY, lambda before: None)
    assert await ids(store) == ["a"]
