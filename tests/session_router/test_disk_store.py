"""The disk store against what disks and processes do: SIGKILL, damage, other formats, starting together."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.config import parse_config
from deployments.errors import PartUnavailable, StartupError
from deployments.session_router.history import from_bytes
from deployments.session_router.service import open_router
from deployments.session_router.stores import Lease, SessionKey, StoredSession
from deployments.session_router.stores.disk import DiskSessionStore

ROOT = Path(__file__).parents[2]


@pytest.fixture
def committing(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes that commit into one store, each in its own session."""
    script = Path(__file__).with_name("committing_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), f"session-{index}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        )
        for index in range(3)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


async def test_a_killed_process_loses_nothing_it_acknowledged(committing, tmp_path) -> None:
    acknowledged = []
    for index, process in enumerate(committing):
        for _ in range(5 + 3 * index):
            process.stdout.readline()
        process.kill()  # wherever it is
        rest = process.stdout.read().split()
        acknowledged.append(int(rest[-1]) if rest else 4 + 3 * index)
    router = open_router(parse_config({"models": [{"name": "alpha", "family": "fake"}], "data_dir": str(tmp_path)}))
    records = await router.records("tenant", "response", 100_000, oldest_first=True)
    for index, last in enumerate(acknowledged):
        messages = await router.history("tenant", f"session-{index}")
        numbers = [int(message.text.split()[1]) for message in messages]
        assert numbers[-1] in (last, last + 1), "the commit after the last acknowledged one may have happened"
        num_exchanges = min(10, numbers[-1] + 1)
        kept = range(numbers[-1] - num_exchanges + 1, numbers[-1] + 1)
        assert numbers == [number for number in kept for _ in range(2)]
        assert all(message.text.endswith("x" * 50_000) for message in messages[1::2])
        stored = await router._store.read(SessionKey("tenant", f"session-{index}"))
        assert from_bytes(stored.conversation).usage.prompt_tokens == numbers[-1] + 1, "no turn was counted twice"
        recorded = [int(each.created_s) for each in records if each.id.startswith(f"session-{index}-")]
        assert recorded == list(range(numbers[-1] + 1)), "each answer has its record, and no record is without answer"
    await router.close()


def test_opening_together_works(tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        start, failures = threading.Barrier(4), []

        def open_it(folder=folder, start=start, failures=failures) -> None:
            start.wait()
            try:
                DiskSessionStore(folder)
            except StartupError as error:
                failures.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_opening_waits_while_another_process_opens(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    opening = threading.Thread(target=DiskSessionStore, args=(tmp_path,))
    opening.start()
    opening.join(timeout=0.1)
    assert opening.is_alive()
    os.close(descriptor)
    opening.join(timeout=10)
    assert not opening.is_alive()


async def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    store = DiskSessionStore(tmp_path / "deep" / "sessions")
    assert (tmp_path / "deep" / "sessions").stat().st_mode & 0o777 == 0o700
    await store.close()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sessions.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StartupError, match=r"cannot open the session store .*sessions\.sqlite: file is not a database"):
        DiskSessionStore(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot open the session store"):
        DiskSessionStore(tmp_path / "file")


async def test_another_format_is_refused(tmp_path: Path) -> None:
    await DiskSessionStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "sessions.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(StartupError, match="has format 7; this version reads formats 1 to 2"):
        DiskSessionStore(tmp_path)


async def test_a_failing_disk_is_an_unavailable_part(tmp_path: Path) -> None:
    store = DiskSessionStore(tmp_path)
    key = SessionKey("tenant", "session")
    kept = StoredSession(1, lease=Lease("token", 2))
    await store.update(key, lambda before: kept)
    store._thread.submit(store._database.execute, "PRAGMA max_page_count = 1").result()  # a disk that is full
    with pytest.raises(PartUnavailable, match="database or disk is full") as error:
        await store.update(key, lambda before: StoredSession(3, b"x" * 1_000_000))
    assert error.value.status == 503
    assert await store.read(key) == kept
    store._thread.submit(store._database.execute, "PRAGMA max_page_count = 1000000").result()
    await store.update(key, lambda before: None)
    assert await store.read(key) is None
    await store.close()
