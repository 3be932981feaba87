"""Sessions in one SQLite file: they outlive the process, and several processes of one machine may share them.

SQLite itself and not `bytes_cache`: lists and eviction need an order by last use, and diskcache 5.6.3 removes the file
of a replaced large value before the surrounding transaction commits, so a kill in between would lose the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from deployments.errors import PartUnavailable, StartupError
from deployments.private_folder import make_private_folder
from deployments.session_router.stores import Change, Lease, SessionCounts, SessionKey, StoredSession
from deployments.types import SessionSummary

T = TypeVar("T")
Row = tuple[float, bytes, int | None, int | None, str | None, str | None, str | None, float | None]

FORMAT = 1  # of the tables, in SQLite's user_version
LOCK_TIMEOUT_S = 30.0  # for the other processes' transactions, which take milliseconds
RETRY_AFTER_S = 1.0

# `conversation` stands last: SQLite would walk its overflow pages to reach a column behind it. The indexes hold all
# that lists, counts and eviction read, so that these never walk through conversations.
SCHEMA = """
CREATE TABLE IF NOT EXISTS session (
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL,
    used_s REAL NOT NULL,
    lease TEXT,
    lease_until_s REAL,
    length INTEGER,     -- these four are the summary: NULL until the first commit
    has_image INTEGER,
    model TEXT,
    updated TEXT,
    conversation BLOB NOT NULL,
    PRIMARY KEY (tenant, session_id)
);
CREATE INDEX IF NOT EXISTS session_by_use
    ON session (tenant, used_s, lease_until_s, session_id, length, has_image, model, updated);
CREATE INDEX IF NOT EXISTS session_with_lease ON session (lease_until_s) WHERE lease_until_s IS NOT NULL;
"""
SELECT = """
SELECT used_s, conversation, length, has_image, model, updated, lease, lease_until_s
FROM session WHERE tenant = ? AND session_id = ?
"""
REPLACE = """
INSERT OR REPLACE INTO session
(used_s, conversation, length, has_image, model, updated, lease, lease_until_s, tenant, session_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
DELETE = "DELETE FROM session WHERE tenant = ? AND session_id = ?"
# max(0, …), here and below: a negative LIMIT means no limit.
SUMMARIES = """
SELECT session_id, length, has_image, model, updated
FROM session WHERE tenant = ? AND length IS NOT NULL ORDER BY used_s DESC LIMIT max(0, ?)
"""
EVICT = """
DELETE FROM session WHERE rowid IN (
    SELECT rowid FROM session WHERE tenant = :tenant AND (lease_until_s IS NULL OR lease_until_s <= :now_s)
    ORDER BY used_s LIMIT max(0, (SELECT count(*) FROM session WHERE tenant = :tenant) - :max_sessions)
)
"""
COUNT = """
SELECT (SELECT count(length) FROM session INDEXED BY session_by_use),
       (SELECT count(*) FROM session INDEXED BY session_with_lease WHERE lease_until_s > ?)
"""


class DiskSessionStore:
    """One thread owns the connection; every method waits for it."""

    kind = "disk"
    is_shared = True

    def __init__(self, folder: Path) -> None:
        """Blocks. Raises StartupError."""
        self._thread = ThreadPoolExecutor(1, "session-store")
        self._database = self._thread.submit(_open_database, folder).result()
        self._is_closed = False

    async def read(self, key: SessionKey) -> StoredSession | None:
        return await self._run(lambda: self._select(key))

    async def update(self, key: SessionKey, decide: Callable[[StoredSession | None], StoredSession | None]) -> Change:
        return await self._run(lambda: self._update(key, decide))

    async def summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        return await self._run(lambda: self._summaries(tenant, limit))

    async def evict(self, tenant: str, max_sessions: int, now_s: float) -> int:
        parameters = {"tenant": tenant, "max_sessions": max_sessions, "now_s": now_s}
        return await self._run(lambda: self._database.execute(EVICT, parameters).rowcount)

    async def count(self, now_s: float) -> SessionCounts:
        return await self._run(lambda: SessionCounts(*self._database.execute(COUNT, (now_s,)).fetchone()))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await self._run(self._database.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        """The one place where blocking work leaves the event loop."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise PartUnavailable(f"the session store failed: {error}", None, RETRY_AFTER_S) from error

    def _update(self, key: SessionKey, decide: Callable[[StoredSession | None], StoredSession | None]) -> Change:
        with _transaction(self._database):
            before = self._select(key)
            after = decide(before)
            if after is None:
                self._database.execute(DELETE, (key.tenant, key.session_id))
            elif after is not before:
                self._database.execute(REPLACE, (*_to_row(after), key.tenant, key.session_id))
        return Change(before, after)

    def _select(self, key: SessionKey) -> StoredSession | None:
        row = self._database.execute(SELECT, (key.tenant, key.session_id)).fetchone()
        return None if row is None else _from_row(key.session_id, row)

    def _summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        rows = self._database.execute(SUMMARIES, (tenant, limit))
        return tuple(
            SessionSummary(session_id, length, bool(has_image), model, updated)
            for session_id, length, has_image, model, updated in rows
        )


def _to_row(stored: StoredSession) -> Row:
    summary, lease = stored.summary, stored.lease
    return (
        stored.used_s,
        stored.conversation,
        *((summary.length, summary.has_image, summary.model, summary.updated) if summary else (None,) * 4),
        *((lease.token, lease.until_s) if lease else (None, None)),
    )


def _from_row(session_id: str, row: Row) -> StoredSession:
    used_s, conversation, length, has_image, model, updated, token, until_s = row
    summary = lease = None
    if length is not None and model is not None and updated is not None:
        summary = SessionSummary(session_id, length, bool(has_image), model, updated)
    if token is not None and until_s is not None:
        lease = Lease(token, until_s)
    return StoredSession(used_s, conversation, summary, lease)


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, since reading first and locking later could fail half-way."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # some failures, such as a full disk, have rolled back already
            database.execute("ROLLBACK")
        raise


def _open_database(folder: Path) -> sqlite3.Connection:
    path = folder / "sessions.sqlite"
    try:
        make_private_folder(folder)
        os.chmod(folder, 0o700)
        database = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        with _nobody_else_opening(folder):
            _prepare(database, path)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"cannot open the session store {path}: {error}", "data_dir") from error
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
    database.execute("PRAGMA synchronous = FULL")  # a commit has reached the disk when it returns
    with _transaction(database):
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found not in (0, FORMAT):
            raise StartupError(f"{path} has format {found}; this version reads format {FORMAT}", "data_dir")
        for statement in SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {FORMAT}")
