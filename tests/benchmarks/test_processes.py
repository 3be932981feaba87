"""Servers that start, fail to start, use the processor, and do not want to end."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import NotStarted, ProcessTree, running

pytestmark = pytest.mark.slow

# A child in a session of its own, which ignores Ctrl-C, as its parent does.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"],
    start_new_session=True,
)
open(sys.argv[1], "w").write(f"{child.pid}\\n")
time.sleep(600)
"""
BUSY = "import sys; open(sys.argv[1], 'w').write('x\\n')\nwhile True: pass"


def start(code: str, folder: Path, **changes: object) -> AbstractContextManager[subprocess.Popen[bytes]]:
    ready = folder / "ready"
    settings: dict[str, object] = {
        "log": folder / "log",
        "environment": dict(os.environ),
        "is_ready": lambda: ready.exists() and ready.read_text().endswith("\n"),
        "ready_within_s": 30.0,
    }
    return running([sys.executable, "-c", code, str(ready)], **(settings | changes))  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    return bool(ProcessTree(pid).stats())


def test_nothing_is_left_of_a_server_that_does_not_want_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_WITHIN_S", 0.2)
    with start(STUBBORN, tmp_path) as process:
        child = int((tmp_path / "ready").read_text())
        assert {stat.pid for stat in ProcessTree(process.pid).stats()} == {process.pid, child}

    assert not is_running(process.pid)
    assert not is_running(child)


def test_a_server_is_ended_when_what_uses_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "END_WITHIN_S", 0.2)
    with pytest.raises(KeyboardInterrupt), start(STUBBORN, tmp_path) as process:
        raise KeyboardInterrupt

    assert not is_running(process.pid)


def test_a_server_that_ends_by_itself_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match="no such model"), start("raise SystemExit('no such model')", tmp_path):
        raise AssertionError("it was never ready")


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(NotStarted, match="not ready within"),
        start("import time; time.sleep(600)", tmp_path, ready_within_s=0.2),
    ):
        raise AssertionError("it was never ready")


def test_what_a_server_uses_is_counted(tmp_path: Path) -> None:
    with start(BUSY, tmp_path) as process:
        tree = ProcessTree(process.pid)
        before = tree.moment()
        used = tree.usage_since(before)
        while used.server_cpu_s < 0.05:
            used = tree.usage_since(before)

    assert used.server_rss_mb > 1
    assert 0 < used.server_pss_mb <= used.server_rss_mb
    assert used.replica_pss_mb == {}


def test_a_process_that_is_gone_has_no_tree() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()

    assert ProcessTree(done.pid).stats() == []
