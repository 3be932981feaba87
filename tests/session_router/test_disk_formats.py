"""Files that earlier versions wrote: opened, brought to the present format, nothing lost.

`format_1.sqlite` was written by the version before titles and records: sessions of two tenants with committed turns,
one of them held by an open turn, and one whose first turn is open.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from deployments.errors import SessionBusy, StartupError
from deployments.record_types import Record
from deployments.session_router.stores import Lease, SessionCounts, SessionKey, disk_file
from deployments.session_router.stores.disk import DiskSessionStore
from deployments.types import SessionSummary, Turn

FILE = Path(__file__).with_name("format_1.sqlite")
NOON_S = 1_735_732_800.0


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sessions"
    folder.mkdir()
    shutil.copy(FILE, folder / "sessions.sqlite")
    return folder


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


COLUMNS = "tenant, session_id, used_s, lease, lease_until_s, length, has_image, model, updated, conversation"
EVERYTHING = f"SELECT {COLUMNS} FROM session ORDER BY tenant, session_id"


async def test_every_value_of_format_1_stays(old_folder: Path) -> None:
    path = old_folder / "sessions.sqlite"
    before = rows(path, EVERYTHING)
    assert rows(path, "PRAGMA user_version") == [(1,)]
    assert len(before) == 4
    await DiskSessionStore(old_folder).close()
    assert rows(path, "PRAGMA user_version") == [(disk_file.FORMAT,)]
    assert rows(path, EVERYTHING) == before
    await DiskSessionStore(old_folder).close()  # and opening it again is nothing new
    assert rows(path, EVERYTHING) == before
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_migrated_file_has_the_schema_of_a_new_one(old_folder: Path, tmp_path: Path) -> None:
    await DiskSessionStore(old_folder).close()
    await DiskSessionStore(tmp_path / "new").close()
    schema = "SELECT name, tbl_name FROM sqlite_schema ORDER BY name"
    migrated, new = old_folder / "sessions.sqlite", tmp_path / "new" / "sessions.sqlite"
    assert rows(migrated, schema) == rows(new, schema)
    for table in ("session", "record"):
        assert rows(migrated, f"PRAGMA table_info({table})") == rows(new, f"PRAGMA table_info({table})")


async def test_sessions_go_on_after_the_migration(old_folder: Path, open_a_router, client, clock, picture) -> None:
    clock.advance(20)
    alice, bob = (client(open_a_router("disk"), tenant) for tenant in ("alice", "bob"))
    assert await alice.router.sessions("alice", 9) == (
        SessionSummary("long", 20, False, "alpha", "2025-01-01T12:00:13.500Z"),
        SessionSummary("seen", 4, True, "beta", "2025-01-01T12:00:01.500Z"),
    )
    assert (await alice.texts("long"))[0] == "question 2"
    assert await alice.texts("seen") == ["what is it?", "a ball", "which colour?", "red"]
    turn = await alice.open("seen", "and now?")
    assert turn.messages[0].images == (picture("a"),)
    assert turn.model == "beta"
    assert await alice.close(turn, "still red", Record("response", "r", 1, "{}")) == 6
    assert (await alice.router.record("alice", "response", "r")).body == "{}"
    titles = {summary.session_id: summary.title for summary in await alice.router.sessions("alice", 9)}
    assert titles == {"seen": "what is it?", "long": ""}, "the next commit gives the title that is still known"

    with pytest.raises(SessionBusy):
        await bob.open("seen")
    open_turn = Turn("bob", "seen", "lease-of-seen", "alpha", turn.messages[:1], "key")
    assert await bob.close(open_turn, "answered after the migration") == 2
    store = bob.router._store
    first = await store.read(SessionKey("bob", "first"))
    assert (first.lease, first.summary) == (Lease("lease-of-first", NOON_S + 165), None)
    assert await store.count(clock()) == SessionCounts(sessions=3, open_turns=1, records=1)


async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_folder / "sessions.sqlite"
    before, schema = rows(path, EVERYTHING), rows(path, "SELECT sql FROM sqlite_schema")
    steps = (disk_file.SESSIONS, disk_file.TITLES_AND_RECORDS + "CREATE TABLE record (twice);")
    with monkeypatch.context() as patched:
        patched.setattr(disk_file, "STEPS", steps)
        with pytest.raises(StartupError, match="table record already exists"):
            DiskSessionStore(old_folder)
    assert rows(path, "PRAGMA user_version") == [(1,)]
    assert rows(path, "SELECT sql FROM sqlite_schema") == schema
    assert rows(path, EVERYTHING) == before
    await DiskSessionStore(old_folder).close()
    assert rows(path, EVERYTHING) == before


def test_many_may_open_an_old_file_together(old_folder: Path) -> None:
    before = rows(old_folder / "sessions.sqlite", EVERYTHING)
    start, failures = threading.Barrier(4), []

    def open_it() -> None:
        start.wait()
        try:
            DiskSessionStore(old_folder)
        except StartupError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(old_folder / "sessions.sqlite", EVERYTHING) == before
