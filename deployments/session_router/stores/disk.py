"""Sessions and records in one SQLite file: they outlive the process; processes of one machine may share them.

SQLite itself and not `bytes_cache`: lists and eviction need an order by last use, and diskcache 5.6.3 removes the file
of a replaced large value before the surrounding transaction commits, so a kill in between would lose the session.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from deployments.errors import PartUnavailable
from deployments.record_types import Record, RecordKind
from deployments.session_router.stores import (
    Change,
    Lease,
    RecordKey,
    SessionCounts,
    SessionKey,
    StoredSession,
    disk_records,
)
from deployments.session_router.stores.disk_file import open_database, transaction
from deployments.types import SessionSummary

T = TypeVar("T")
Row = tuple[float, bytes, int | None, int | None, str | None, str | None, str | None, str | None, float | None]

RETRY_AFTER_S = 1.0
SELECT = """
SELECT used_s, conversation, length, has_image, model, updated, title, lease, lease_until_s
FROM session WHERE tenant = ? AND session_id = ?
"""
REPLACE = """
INSERT OR REPLACE INTO session
(used_s, conversation, length, has_image, model, updated, title, lease, lease_until_s, tenant, session_id)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
DELETE = "DELETE FROM session WHERE tenant = ? AND session_id = ?"
# max(0, …), here and below: a negative LIMIT means no limit.
SUMMARIES = """
SELECT session_id, length, has_image, model, updated, title
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
       (SELECT count(*) FROM session INDEXED BY session_with_lease WHERE lease_until_s > ?),
       (SELECT count(*) FROM record INDEXED BY record_by_age)
"""


class DiskSessionStore:
    """One thread owns the connection; every method waits for it."""

    kind = "disk"
    is_shared = True

    def __init__(self, folder: Path) -> None:
        """Blocks. Raises StartupError."""
        self._thread = ThreadPoolExecutor(1, "session-store")
        self._database = self._thread.submit(open_database, folder).result()
        self._is_closed = False

    async def read(self, key: SessionKey) -> StoredSession | None:
        return await self._run(lambda: self._select(key))

    async def update(
        self,
        key: SessionKey,
        decide: Callable[[StoredSession | None], StoredSession | None],
        records: Sequence[Record] = (),
    ) -> Change:
        return await self._run(lambda: self._update(key, decide, records))

    async def summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        return await self._run(lambda: self._summaries(tenant, limit))

    async def evict(self, tenant: str, max_sessions: int, now_s: float) -> int:
        parameters = {"tenant": tenant, "max_sessions": max_sessions, "now_s": now_s}
        return await self._run(lambda: self._database.execute(EVICT, parameters).rowcount)

    async def count(self, now_s: float) -> SessionCounts:
        return await self._run(lambda: SessionCounts(*self._database.execute(COUNT, (now_s,)).fetchone()))

    async def put_record(self, tenant: str, record: Record) -> None:
        await self._run(lambda: disk_records.put(self._database, tenant, record))

    async def read_record(self, key: RecordKey, now_s: float) -> Record | None:
        return await self._run(lambda: disk_records.read(self._database, key, now_s))

    async def list_records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None, *, oldest_first: bool, now_s: float
    ) -> tuple[Record, ...] | None:
        page = disk_records.Page(tenant, kind, limit, after, oldest_first, now_s)
        return await self._run(lambda: disk_records.read_page(self._database, page))

    async def delete_record(self, key: RecordKey, now_s: float) -> Record | None:
        return await self._run(lambda: disk_records.delete(self._database, key, now_s))

    async def trim_records(self, tenant: str, kind: RecordKind, max_records: int, now_s: float) -> int:
        return await self._run(lambda: disk_records.trim(self._database, tenant, kind, max_records, now_s))

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

    def _update(
        self,
        key: SessionKey,
        decide: Callable[[StoredSession | None], StoredSession | None],
        records: Sequence[Record],
    ) -> Change:
        with transaction(self._database):
            before = self._select(key)
            after = decide(before)
            if after is None:
                self._database.execute(DELETE, (key.tenant, key.session_id))
            elif after is not before:
                self._database.execute(REPLACE, (*_to_row(after), key.tenant, key.session_id))
            if after is not before:
                for record in records:
                    disk_records.put(self._database, key.tenant, record)
        return Change(before, after)

    def _select(self, key: SessionKey) -> StoredSession | None:
        row = self._database.execute(SELECT, (key.tenant, key.session_id)).fetchone()
        return None if row is None else _from_row(key.session_id, row)

    def _summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        rows = self._database.execute(SUMMARIES, (tenant, limit))
        return tuple(
            SessionSummary(session_id, length, bool(has_image), model, updated, title or "")
            for session_id, length, has_image, model, updated, title in rows
        )


def _to_row(stored: StoredSession) -> Row:
    summary, lease = stored.summary, stored.lease
    return (
        stored.used_s,
        stored.conversation,
        *(
            (summary.length, summary.has_image, summary.model, summary.updated, summary.title)
            if summary
            else (None,) * 5
        ),
        *((lease.token, lease.until_s) if lease else (None, None)),
    )


def _from_row(session_id: str, row: Row) -> StoredSession:
    used_s, conversation, length, has_image, model, updated, title, token, until_s = row
    summary = lease = None
    if length is not None and model is not None and updated is not None:
        summary = SessionSummary(session_id, length, bool(has_image), model, updated, title or "")
    if token is not None and until_s is not None:
        lease = Lease(token, until_s)
    return StoredSession(used_s, conversation, summary, lease)
