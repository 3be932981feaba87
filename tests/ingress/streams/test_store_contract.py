"""What every stream store must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.config import StreamConfig
from deployments.errors import Overloaded
from deployments.ingress.streams.stores import (
    Hold,
    HoldLost,
    LogView,
    NewLog,
    Sign,
    StreamCounts,
    StreamKey,
    StreamStore,
    TakenLog,
)
from deployments.ingress.streams.stores.open import open_stream_store

KEY = StreamKey("tenant", "stream")
OTHER = StreamKey("tenant", "other")
FAR_S = 1000.0


@pytest.fixture
async def store(store_kind: str, tmp_path: Path) -> AsyncIterator[StreamStore]:
    opened = open_stream_store(StreamConfig(store=store_kind), tmp_path)  # type: ignore[arg-type]
    yield opened
    await opened.close()
    await opened.close()


async def create(
    store: StreamStore,
    key: StreamKey = KEY,
    owner: str = "me",
    *,
    is_background: bool = False,
    now_s: float = 1,
    expires_s: float = FAR_S,
    max_logs: int = 10,
) -> Hold:
    return await store.create(NewLog(key, owner, "plan", is_background, expires_s), "first", max_logs, now_s)


async def view(store: StreamStore, key: StreamKey = KEY, after: int = -1) -> LogView:
    found = await store.read(key, after)
    assert found is not None
    return found


async def test_entries_are_read_from_every_point(store: StreamStore) -> None:
    hold = await create(store)
    assert hold == Hold(KEY, 0)
    await store.append(hold, ["second"])
    await store.append(hold, ["third ✓", "{}"])
    entries = ("first", "second", "third ✓", "{}")
    for after in range(-1, 6):
        assert await view(store, after=after) == LogView(entries[after + 1 :], 4, 0, 1, False, FAR_S)


async def test_a_log_that_does_not_exist(store: StreamStore) -> None:
    assert await store.read(KEY, -1) is None
    assert await store.ask_stop(KEY) is False
    assert await store.take_over(Hold(KEY, 0), "me", 1, 1) is None
    with pytest.raises(HoldLost):
        await store.append(Hold(KEY, 0), ["x"])
    await store.touch([KEY], 1)
    await store.release(Hold(KEY, 0))
    assert await store.count() == StreamCounts(0, 0)


async def test_the_end(store: StreamStore) -> None:
    hold = await create(store)
    await store.append(hold, ["last"], 50)
    assert await view(store, after=0) == LogView(("last",), 2, 0, 1, True, 50)
    assert await store.count() == StreamCounts(0, 1)
    with pytest.raises(HoldLost):
        await store.append(hold, ["more"])
    assert await store.take_over(hold, "you", 100, 100) is None
    assert await store.beat("me", 2, FAR_S) == ()
    assert (await view(store)).expires_s == 50


async def test_tenants_have_logs_of_the_same_name(store: StreamStore) -> None:
    await create(store)
    other = StreamKey("else", "stream")
    hold = await create(store, other)
    await store.append(hold, ["theirs"])
    assert (await view(store)).entries == ("first",)
    assert (await view(store, other)).entries == ("first", "theirs")


async def test_no_more_than_max_logs_of_a_tenant(store: StreamStore) -> None:
    await create(store, max_logs=2)
    await create(store, OTHER, max_logs=2, expires_s=10)
    with pytest.raises(Overloaded, match="2 streams"):
        await create(store, StreamKey("tenant", "third"), max_logs=2)
    assert await store.read(StreamKey("tenant", "third"), -1) is None
    await create(store, StreamKey("else", "third"), max_logs=2)
    await create(store, StreamKey("tenant", "third"), max_logs=2, now_s=10)
    assert await store.read(OTHER, -1) is None


async def test_a_heartbeat_is_for_all_logs_of_an_owner(store: StreamStore) -> None:
    mine = [await create(store), await create(store, OTHER)]
    await create(store, StreamKey("tenant", "yours"), "you")
    await store.touch([OTHER], 7)
    assert await store.ask_stop(KEY)
    signs = await store.beat("me", 8, 2000)
    assert set(signs) == {Sign(mine[0], True, 0), Sign(mine[1], False, 7)}
    assert (await view(store)).alive_s == (await view(store, OTHER)).alive_s == 8
    assert (await view(store)).expires_s == 2000
    yours = await view(store, StreamKey("tenant", "yours"))
    assert (yours.alive_s, yours.expires_s) == (1, FAR_S)
    assert await store.beat("nobody", 9, 2000) == ()


async def test_taken_over_once(store: StreamStore) -> None:
    old = await create(store, is_background=True)
    await store.append(old, ["second"])
    await store.ask_stop(KEY)
    assert await store.take_over(old, "you", 5, alive_before_s=1) is None  # it gave a sign at 1
    taken = await store.take_over(old, "you", 5, alive_before_s=1.5)
    assert taken == TakenLog(Hold(KEY, 1), "plan", ("first", "second"), True, True)
    assert await store.take_over(old, "they", 500, 500) is None
    with pytest.raises(HoldLost):
        await store.append(old, ["late"])
    with pytest.raises(HoldLost):
        await store.append(old, ())
    await store.release(old)
    assert await store.beat("me", 6, FAR_S) == ()
    await store.append(taken.hold, ())
    await store.append(taken.hold, ["third"], 50)
    assert await view(store) == LogView(("first", "second", "third"), 3, 1, 5, True, 50)


async def test_released_it_can_be_taken_over_at_once(store: StreamStore) -> None:
    hold = await create(store, now_s=100)
    await store.release(hold)
    assert await store.beat("me", 101, FAR_S) == ()
    assert await store.take_over(hold, "you", 101, 98) is not None


async def test_of_many_one_takes_over(store: StreamStore) -> None:
    hold = await create(store)
    taken = await asyncio.gather(*(store.take_over(hold, f"owner {number}", 9, 9) for number in range(5)))
    assert sum(each is not None for each in taken) == 1


async def test_orphans_are_background_logs(store: StreamStore) -> None:
    orphan = await create(store, is_background=True)
    await create(store, OTHER)
    ended = await create(store, StreamKey("tenant", "ended"), is_background=True)
    await store.append(ended, ["last"], 50)
    await create(store, StreamKey("tenant", "alive"), is_background=True, now_s=5)
    assert await store.orphans(5) == (orphan,)


async def test_what_is_past_its_time_goes(store: StreamStore) -> None:
    await create(store, expires_s=10)
    await create(store, OTHER, expires_s=11)
    assert await store.expire(9) == 0
    assert await store.expire(10) == 1
    assert await store.read(KEY, -1) is None
    assert (await view(store, OTHER)).entries == ("first",)
    await create(store)
    assert (await view(store)).entries == ("first",)


async def test_appends_of_one_moment(store: StreamStore) -> None:
    holds = [await create(store, StreamKey("tenant", str(number)), max_logs=100) for number in range(20)]
    lost = Hold(StreamKey("tenant", "0"), 7)

    async def write(hold: Hold) -> None:
        for number in range(10):
            await store.append(hold, [str(number)])

    results = await asyncio.gather(*map(write, [*holds, lost]), return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 20 + [HoldLost]
    for hold in holds:
        assert (await view(store, hold.key, 0)).entries == tuple(map(str, range(10)))


async def test_a_cancelled_append_happens_wholly_or_not_at_all(store: StreamStore) -> None:
    hold = await create(store)
    task = asyncio.create_task(store.append(hold, ["a", "b"]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.append(hold, ["c"])
    assert (await view(store, after=0)).entries in (("c",), ("a", "b", "c"))
