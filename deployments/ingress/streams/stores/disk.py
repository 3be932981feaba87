"""Logs of streams in one SQLite file, which several processes of one machine share.

What was written survives any process, killed ones included, but not always a power cut: nobody goes on with a stream
after that, so no write waits for the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from deployments.errors import StartupError
from deployments.ingress.streams.stores import (
    Hold,
    HoldLost,
    LogView,
    NewLog,
    Sign,
    StreamCounts,
    StreamKey,
    TakenLog,
    too_many,
)
from deployments.ingress.streams.stores.grouped_writes import GroupedWrites
from deployments.private_folder import make_private_folder

FORMAT = 1  # of the tables, in SQLite's user_version
LOCK_TIMEOUT_S = 10.0  # for the other processes' transactions, which take milliseconds

SCHEMA = """
CREATE TABLE IF NOT EXISTS stream (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    stream_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0,
    alive_s REAL NOT NULL,
    read_s REAL NOT NULL DEFAULT 0,
    expires_s REAL NOT NULL,
    is_background INTEGER NOT NULL,
    is_stop_asked INTEGER NOT NULL DEFAULT 0,
    has_ended INTEGER NOT NULL DEFAULT 0,
    plan TEXT NOT NULL,
    UNIQUE (tenant, stream_id)
);
CREATE INDEX IF NOT EXISTS stream_by_owner ON stream (owner) WHERE NOT has_ended;
CREATE INDEX IF NOT EXISTS stream_by_expiry ON stream (expires_s);
CREATE TABLE IF NOT EXISTS entry (
    stream INTEGER NOT NULL REFERENCES stream (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (stream, position)
) WITHOUT ROWID;
"""
EXPIRE_TENANT = "DELETE FROM stream WHERE tenant = ? AND expires_s <= ?"
COUNT_TENANT = "SELECT count(*) FROM stream WHERE tenant = ?"
CREATE = """
INSERT INTO stream (tenant, stream_id, owner, alive_s, expires_s, is_background, plan) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
HELD = "SELECT id FROM stream WHERE tenant = ? AND stream_id = ? AND epoch = ? AND NOT has_ended"
ADD = """
INSERT INTO entry VALUES (:id, 1 + coalesce((SELECT max(position) FROM entry WHERE stream = :id), -1), :body)
"""
END = "UPDATE stream SET has_ended = 1, expires_s = ? WHERE id = ?"
VIEW = """
SELECT id, epoch, alive_s, has_ended, expires_s,
       (SELECT 1 + max(position) FROM entry WHERE stream = id)
FROM stream WHERE tenant = ? AND stream_id = ?
"""
ENTRIES = "SELECT body FROM entry WHERE stream = ? AND position > ? ORDER BY position"
ASK_STOP = "UPDATE stream SET is_stop_asked = 1 WHERE tenant = ? AND stream_id = ?"
TOUCH = "UPDATE stream SET read_s = ? WHERE tenant = ? AND stream_id = ?"
BEAT = """
UPDATE stream SET alive_s = ?, expires_s = ? WHERE owner = ? AND NOT has_ended
RETURNING tenant, stream_id, epoch, is_stop_asked, read_s
"""
RELEASE = "UPDATE stream SET owner = '', alive_s = 0 WHERE tenant = ? AND stream_id = ? AND epoch = ?"
TAKE_OVER = """
UPDATE stream SET owner = ?, alive_s = ?, epoch = epoch + 1
WHERE tenant = ? AND stream_id = ? AND epoch = ? AND NOT has_ended AND alive_s < ?
RETURNING id, epoch, plan, is_background, is_stop_asked
"""
ORPHANS = "SELECT tenant, stream_id, epoch FROM stream WHERE is_background AND NOT has_ended AND alive_s < ?"
EXPIRE = "DELETE FROM stream WHERE id IN (SELECT id FROM stream WHERE expires_s <= ? ORDER BY expires_s LIMIT ?)"
MAX_EXPIRED = 50  # in one transaction: others' tokens wait for it
COUNT = "SELECT count(*) - coalesce(sum(has_ended), 0), coalesce(sum(has_ended), 0) FROM stream"


class DiskStreamStore:
    """One thread owns the connection; every method waits for it."""

    kind = "disk"
    is_shared = True

    def __init__(self, folder: Path) -> None:
        """Blocks. Raises StartupError."""
        self._database = GroupedWrites("stream-store", lambda: _open_database(folder))

    async def create(self, new: NewLog, entry: str, max_logs: int, now_s: float) -> Hold:
        return await self._database.write(lambda database: _create(database, new, entry, max_logs, now_s))

    async def append(self, hold: Hold, entries: Sequence[str], ended_until_s: float | None = None) -> None:
        await self._database.write(lambda database: _append(database, hold, entries, ended_until_s))

    async def read(self, key: StreamKey, after: int) -> LogView | None:
        return await self._database.read(lambda database: _read(database, key, after))

    async def ask_stop(self, key: StreamKey) -> bool:
        return await self._database.write(
            lambda database: database.execute(ASK_STOP, (key.tenant, key.stream_id)).rowcount > 0
        )

    async def touch(self, keys: Collection[StreamKey], now_s: float) -> None:
        rows = [(now_s, key.tenant, key.stream_id) for key in keys]
        await self._database.write(lambda database: database.executemany(TOUCH, rows))

    async def beat(self, owner: str, now_s: float, expires_s: float) -> tuple[Sign, ...]:
        rows = await self._database.write(lambda database: database.execute(BEAT, (now_s, expires_s, owner)).fetchall())
        return tuple(
            Sign(Hold(StreamKey(tenant, stream_id), epoch), bool(is_stop_asked), read_s)
            for tenant, stream_id, epoch, is_stop_asked, read_s in rows
        )

    async def release(self, hold: Hold) -> None:
        await self._database.write(lambda database: database.execute(RELEASE, _where(hold)))

    async def take_over(self, hold: Hold, owner: str, now_s: float, alive_before_s: float) -> TakenLog | None:
        return await self._database.write(lambda database: _take_over(database, hold, owner, now_s, alive_before_s))

    async def orphans(self, alive_before_s: float) -> tuple[Hold, ...]:
        rows = await self._database.read(lambda database: database.execute(ORPHANS, (alive_before_s,)).fetchall())
        return tuple(Hold(StreamKey(tenant, stream_id), epoch) for tenant, stream_id, epoch in rows)

    async def expire(self, now_s: float) -> int:
        gone = 0
        while True:
            found = await self._database.write(lambda database: database.execute(EXPIRE, (now_s, MAX_EXPIRED)).rowcount)
            gone += found
            if found < MAX_EXPIRED:
                return gone

    async def count(self) -> StreamCounts:
        return StreamCounts(*await self._database.read(lambda database: database.execute(COUNT).fetchone()))

    async def close(self) -> None:
        await self._database.close()


def _where(hold: Hold) -> tuple[str, str, int]:
    return hold.key.tenant, hold.key.stream_id, hold.epoch


def _create(database: sqlite3.Connection, new: NewLog, entry: str, max_logs: int, now_s: float) -> Hold:
    key = new.key
    if _count_of(database, key.tenant) >= max_logs:
        database.execute(EXPIRE_TENANT, (key.tenant, now_s))  # only now: the sweep takes them in small steps
        if _count_of(database, key.tenant) >= max_logs:
            raise too_many(max_logs)
    row = (key.tenant, key.stream_id, new.owner, now_s, new.expires_s, new.is_background, new.plan)
    number = database.execute(CREATE, row).lastrowid
    database.execute(ADD, {"id": number, "body": entry})
    return Hold(key, 0)


def _count_of(database: sqlite3.Connection, tenant: str) -> int:
    (count,) = database.execute(COUNT_TENANT, (tenant,)).fetchone()
    return int(count)


def _append(database: sqlite3.Connection, hold: Hold, entries: Sequence[str], ended_until_s: float | None) -> None:
    found = database.execute(HELD, _where(hold)).fetchone()
    if found is None:
        raise HoldLost
    for entry in entries:
        database.execute(ADD, {"id": found[0], "body": entry})
    if ended_until_s is not None:
        database.execute(END, (ended_until_s, found[0]))


def _read(database: sqlite3.Connection, key: StreamKey, after: int) -> LogView | None:
    found = database.execute(VIEW, (key.tenant, key.stream_id)).fetchone()
    if found is None:
        return None
    number, epoch, alive_s, has_ended, expires_s, num_entries = found
    return LogView(_entries(database, number, after), num_entries, epoch, alive_s, bool(has_ended), expires_s)


def _entries(database: sqlite3.Connection, number: int, after: int) -> tuple[str, ...]:
    return tuple(body for (body,) in database.execute(ENTRIES, (number, after)))


def _take_over(
    database: sqlite3.Connection, hold: Hold, owner: str, now_s: float, alive_before_s: float
) -> TakenLog | None:
    found = database.execute(TAKE_OVER, (owner, now_s, *_where(hold), alive_before_s)).fetchone()
    if found is None:
        return None
    number, epoch, plan, is_background, is_stop_asked = found
    entries = _entries(database, number, -1)
    return TakenLog(Hold(hold.key, epoch), plan, entries, bool(is_background), bool(is_stop_asked))


def _open_database(folder: Path) -> sqlite3.Connection:
    path = folder / "streams.sqlite"
    try:
        make_private_folder(folder)
        os.chmod(folder, 0o700)
        database = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        with _nobody_else_opening(folder):
            _prepare(database, path)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot open the stream store {path}: {error}", "data_dir") from error
    return database


@contextlib.contextmanager
def _nobody_else_opening(folder: Path) -> Iterator[None]:
    """SQLite fails at once, whatever the timeout, when two connections switch a new file to WAL together."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel takes it back when the process dies
        yield
    finally:
        os.close(descriptor)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA foreign_keys = ON")
    (found,) = database.execute("PRAGMA user_version").fetchone()
    if found not in (0, FORMAT):
        raise StartupError(f"{path} has format {found}; this version reads format {FORMAT}", "data_dir")
    database.executescript(SCHEMA)
    database.execute(f"PRAGMA user_version = {FORMAT}")
