"""Records in the disk store's SQLite file. Every function blocks and raises sqlite3.Error."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass

from deployments.record_types import Record, RecordKind
from deployments.session_router.stores import RecordKey

PUT = """
INSERT OR REPLACE INTO record (tenant, kind, record_id, created_s, expires_s, body) VALUES (?, ?, ?, ?, ?, ?)
"""
ALIVE = "(expires_s IS NULL OR expires_s > :now_s)"
READ = f"""
SELECT kind, record_id, created_s, body, expires_s FROM record
WHERE tenant = :tenant AND kind = :kind AND record_id = :record_id AND {ALIVE}
"""
# Whether a record was alive is seen in what comes back: one past its time may go as well.
DELETE = """
DELETE FROM record WHERE tenant = :tenant AND kind = :kind AND record_id = :record_id
RETURNING kind, record_id, created_s, body, expires_s
"""
FIND_PLACE = f"""
SELECT created_s, place FROM record
WHERE tenant = :tenant AND kind = :kind AND record_id = :after AND {ALIVE}
"""
# max(0, …), here and below: a negative LIMIT means no limit.
PAGE = """
SELECT kind, record_id, created_s, body, expires_s FROM record INDEXED BY record_by_age
WHERE tenant = :tenant AND kind = :kind AND (created_s, place) {beyond} (:created_s, :place) AND {alive}
ORDER BY created_s {order}, place {order} LIMIT max(0, :limit)
"""
NEWEST_FIRST = PAGE.format(beyond="<", order="DESC", alive=ALIVE)
OLDEST_FIRST = PAGE.format(beyond=">", order="ASC", alive=ALIVE)
TRIM_TIME = "DELETE FROM record INDEXED BY record_by_expiry WHERE expires_s <= ?"
TRIM_NUMBER = """
DELETE FROM record WHERE place IN (
    SELECT place FROM record INDEXED BY record_by_age WHERE tenant = :tenant AND kind = :kind
    ORDER BY created_s, place
    LIMIT max(0, (
        SELECT count(*) FROM record INDEXED BY record_by_age WHERE tenant = :tenant AND kind = :kind
    ) - :max_records)
)
"""


@dataclass(frozen=True, slots=True)
class Page:
    tenant: str
    kind: RecordKind
    limit: int
    after: str | None
    oldest_first: bool
    now_s: float


def put(database: sqlite3.Connection, tenant: str, record: Record) -> None:
    database.execute(PUT, (tenant, record.kind, record.id, record.created_s, record.expires_s, record.body))


def read(database: sqlite3.Connection, key: RecordKey, now_s: float) -> Record | None:
    row = database.execute(READ, {**_names(key), "now_s": now_s}).fetchone()
    return None if row is None else Record(*row)


def read_page(database: sqlite3.Connection, page: Page) -> tuple[Record, ...] | None:
    start: tuple[float, int] | None = (-math.inf, 0) if page.oldest_first else (math.inf, 0)
    if page.after is not None:
        found = {"tenant": page.tenant, "kind": page.kind, "after": page.after, "now_s": page.now_s}
        start = database.execute(FIND_PLACE, found).fetchone()
    if start is None:
        return None
    parameters = {
        "tenant": page.tenant,
        "kind": page.kind,
        "created_s": start[0],
        "place": start[1],
        "limit": page.limit,
        "now_s": page.now_s,
    }
    rows = database.execute(OLDEST_FIRST if page.oldest_first else NEWEST_FIRST, parameters)
    return tuple(Record(*row) for row in rows)


def delete(database: sqlite3.Connection, key: RecordKey, now_s: float) -> Record | None:
    rows = database.execute(DELETE, _names(key)).fetchall()  # all of them: the statement ends with its last row
    record = Record(*rows[0]) if rows else None
    return None if record is None or (record.expires_s is not None and record.expires_s <= now_s) else record


def trim(database: sqlite3.Connection, tenant: str, kind: RecordKind, max_records: int, now_s: float) -> int:
    """Two transactions: what the first removed is not wanted back when the second fails."""
    past = database.execute(TRIM_TIME, (now_s,)).rowcount
    surplus = database.execute(TRIM_NUMBER, {"tenant": tenant, "kind": kind, "max_records": max_records}).rowcount
    return past + surplus


def _names(key: RecordKey) -> dict[str, str]:
    return {"tenant": key.tenant, "kind": key.kind, "record_id": key.record_id}
