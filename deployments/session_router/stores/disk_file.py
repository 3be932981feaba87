"""The disk store's SQLite file: its tables in every format it has had, opening it, and its transactions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from deployments.errors import StartupError
from deployments.private_folder import make_private_folder

LOCK_TIMEOUT_S = 30.0  # for the other processes' transactions, which take milliseconds

# `conversation` stands last: SQLite would walk its overflow pages to reach a column behind it. The indexes hold all
# that lists, counts and eviction read, so that these never walk through conversations.
SESSIONS = """
CREATE TABLE session (
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
CREATE INDEX session_by_use ON session (tenant, used_s, lease_until_s, session_id, length, has_image, model, updated);
CREATE INDEX session_with_lease ON session (lease_until_s) WHERE lease_until_s IS NOT NULL;
"""
# The title joins the summary. It stands behind the conversation, as no rows are written anew: lists read it from the
# index, and whoever reads a session reads its conversation too. NULL in sessions that are older than this format.
TITLES_AND_RECORDS = """
ALTER TABLE session ADD COLUMN title TEXT;
DROP INDEX session_by_use;
CREATE INDEX session_by_use
    ON session (tenant, used_s, lease_until_s, session_id, length, has_image, model, updated, title);
CREATE TABLE record (
    place INTEGER PRIMARY KEY,  -- order of storing
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    created_s REAL NOT NULL,
    expires_s REAL,
    body TEXT NOT NULL,
    UNIQUE (tenant, kind, record_id)
);
CREATE INDEX record_by_age ON record (tenant, kind, created_s, place);
CREATE INDEX record_by_expiry ON record (expires_s) WHERE expires_s IS NOT NULL;
"""
STEPS = (SESSIONS, TITLES_AND_RECORDS)  # the first makes format 1 of an empty file, each further one the next format
FORMAT = len(STEPS)  # stands in SQLite's user_version


def open_database(folder: Path) -> sqlite3.Connection:
    """The file in this version's format, whichever it was in. Raises StartupError."""
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
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes the write lock at once, since reading first and locking later could fail half-way."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # some failures, such as a full disk, have rolled back already
            database.execute("ROLLBACK")
        raise


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
    with transaction(database):
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if not 0 <= found <= FORMAT:
            raise StartupError(f"{path} has format {found}; this version reads formats 1 to {FORMAT}", "data_dir")
        for step in STEPS[found:]:
            for statement in step.split(";"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {FORMAT}")
