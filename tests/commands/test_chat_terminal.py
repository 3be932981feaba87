"""`retina chat` on a terminal: line editing, the history file, Ctrl-C and Ctrl-D as keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands.stage import ENDS_WITHIN_S, ROOT, config_file, environment, obey_sigint

pytestmark = pytest.mark.slow

ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])")


class Terminal:
    """A person at a pseudo-terminal."""

    def __init__(self, home: Path, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 200))
        settings = environment(home, TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
        command = [sys.executable, "-m", "deployments.cli", "chat", *words]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=settings,
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, words: str) -> str:
        """What stands on the terminal up to there, since the last wait."""
        deadline = time.monotonic() + ENDS_WITHIN_S / 2
        while words not in self.seen:
            assert time.monotonic() < deadline, self.seen
            ready, _, _ = select.select([self._ours], [], [], 0.1)
            if ready:
                try:
                    data = os.read(self._ours, 4096)
                except OSError:  # Linux: the other side is closed
                    data = b""
                assert data, f"ended before {words!r}: {self.seen}"
                self.seen += ESCAPES.sub("", data.decode(errors="replace"))
        before, self.seen = self.seen.split(words, 1)
        return before

    def end(self) -> int:
        """Reads on, for a program that cannot write does not end."""
        deadline = time.monotonic() + ENDS_WITHIN_S / 2
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._ours, 4096).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(ENDS_WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)


def _own_the_terminal() -> None:
    """In the new process: Ctrl-C at this terminal is for it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    obey_sigint()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, "-c", str(config_file(tmp_path)))
    yield opened
    opened.close()


def test_a_conversation_with_history_and_an_edited_line(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(">")
    terminal.type("hellp\x7fo\r")  # Backspace mends the last letter
    terminal.wait_for('You asked: "hello".')
    terminal.wait_for(">")
    terminal.type("\x1b[A\r")  # the line before
    terminal.wait_for('You asked: "hello". I remember 2 messages before this one.')
    terminal.wait_for(">")
    terminal.type("/quit\r")
    assert terminal.end() == 0
    [kept] = tmp_path.rglob("chat_history")
    assert "+hello" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_interrupts_empty_the_line_stop_the_answer_and_leave(terminal: Terminal) -> None:
    terminal.wait_for(">")
    terminal.type("never asked\x03")
    terminal.type("a question whose answer takes a while because the fake model waits before each of its words\r")
    terminal.wait_for("You asked:")
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for(">")
    terminal.type("/history\r")
    shown = terminal.wait_for("assistant:")
    assert "never asked" not in shown
    terminal.wait_for(">")
    terminal.type("\x03")
    assert terminal.end() == 130


def test_the_end_of_the_input_leaves(terminal: Terminal) -> None:
    terminal.wait_for(">")
    terminal.type("\x04")
    assert terminal.end() == 0
