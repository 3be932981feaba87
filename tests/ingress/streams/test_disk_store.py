"""What is the disk store's own: several connections, kills, damage, formats, and writes in groups."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import PartUnavailable, StartupError
from deployments.ingress.streams.stores import HoldLost, NewLog, StreamKey
from deployments.ingress.streams.stores.disk import MAX_EXPIRED, DiskStreamStore

KEY = StreamKey("tenant", "stream")
NEW = NewLog(KEY, "me", "plan", False, 1000)


async def test_two_processes_share_a_log(tmp_path: Path) -> None:
    first, second = DiskStreamStore(tmp_path), DiskStreamStore(tmp_path)
    hold = await first.create(NEW, "0", 10, 1)
    for number in range(1, 20):
        await first.append(hold, [str(number)])
        view = await second.read(KEY, number - 1)
        assert view is not None
        assert view.entries == (str(number),)
    taken = await second.take_over(hold, "you", 100, 100)
    assert taken is not None
    assert taken.entries == tuple(map(str, range(20)))
    with pytest.raises(HoldLost):
        await first.append(hold, ["late"])
    await first.close()
    await second.close()


class Stubborn:
    """A connection whose disk fails, in COMMIT and in the ROLLBACK after it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self.refused = {"COMMIT", "ROLLBACK"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement in self.refused:
            self.refused.remove(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return self._database.execute(statement, *parameters)


async def test_a_failing_disk_is_an_error_for_whoever_waits_and_passes(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    store._database._database = Stubborn(store._database._database)  # type: ignore[assignment]
    async with asyncio.timeout(10):
        with pytest.raises(PartUnavailable, match="disk I/O"):
            await store.create(NEW, "0", 10, 1)
        with pytest.raises(PartUnavailable, match="within a transaction"):
            await store.create(NEW, "0", 10, 1)
        hold = await store.create(NEW, "0", 10, 1)
        await store.append(hold, ["1"])
        view = await store.read(KEY, -1)
    assert view is not None
    assert view.entries == ("0", "1")
    await store.close()


async def test_what_expires_together_goes_in_steps_that_let_others_write(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    hold = await store.create(NEW, "0", 1000, 1)
    old = [NewLog(StreamKey("tenant", f"old-{number}"), "me", "plan", False, 10) for number in range(2 * MAX_EXPIRED)]
    await asyncio.gather(*(store.create(new, "0", 1000, 1) for new in old))
    expiring = asyncio.create_task(store.expire(20))
    await asyncio.sleep(0)  # its first step is asked for
    await store.append(hold, ["1"])
    assert not expiring.done()
    assert await expiring == len(old)
    assert await store.read(old[-1].key, -1) is None
    view = await store.read(KEY, -1)
    assert view is not None
    assert view.entries == ("0", "1")
    await store.close()


async def test_it_is_there_after_the_process(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    await store.create(NEW, "0", 10, 1)
    await store.close()
    again = DiskStreamStore(tmp_path)
    view = await again.read(KEY, -1)
    assert view is not None
    assert view.entries == ("0",)
    await again.close()


async def test_only_its_owner_may_enter_the_folder(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path / "a" / "streams")
    assert stat.S_IMODE((tmp_path / "a" / "streams").stat().st_mode) == 0o700
    await store.close()


async def test_another_format_is_refused(tmp_path: Path) -> None:
    await DiskStreamStore(tmp_path).close()
    database = sqlite3.connect(tmp_path / "streams.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StartupError, match="format 99"):
        DiskStreamStore(tmp_path)


async def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="stream store"):
        DiskStreamStore(tmp_path / "file")


async def test_closed_it_says_so(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    await store.close()
    with pytest.raises(PartUnavailable, match="closed"):
        await store.read(KEY, -1)


async def test_close_does_what_was_asked_for_first(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    creating = asyncio.create_task(store.create(NEW, "0", 10, 1))
    await asyncio.sleep(0)
    await store.close()
    assert (await creating).key == KEY


async def test_a_database_that_fails_is_a_part_that_is_unavailable(tmp_path: Path) -> None:
    store = DiskStreamStore(tmp_path)
    hold = await store.create(NEW, "0", 10, 1)
    damage = sqlite3.connect(tmp_path / "streams.sqlite")
    damage.execute("ALTER TABLE entry RENAME TO gone")
    damage.commit()
    writes = await asyncio.gather(store.append(hold, ["1"]), store.touch([KEY], 5), return_exceptions=True)
    assert [type(write) for write in writes] == [PartUnavailable] * 2  # one transaction
    damage.execute("ALTER TABLE gone RENAME TO entry")
    damage.commit()
    damage.close()
    await store.append(hold, ["1"])
    view = await store.read(KEY, 0)
    assert view is not None
    assert view.entries == ("1",)
    await store.close()
