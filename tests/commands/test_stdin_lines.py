"""Lines of stdin come as they are written, and nobody waits for the next one at the end."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Iterator

import pytest

from deployments.commands.stdin_lines import MAX_AHEAD, StdinLines


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Its writing end; stdin reads from the other."""
    ours, theirs = os.pipe()
    with open(ours, encoding="utf-8", closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield theirs
    # `ours` stays open: a thread may be reading there until the program ends.


async def test_each_line_comes_when_it_is_written(pipe: int) -> None:
    lines = StdinLines()
    os.write(pipe, b"one\ntw")
    assert await lines.next_line() == "one\n"
    waiting = asyncio.ensure_future(lines.next_line())
    os.write(pipe, b"o\nthree")
    assert await waiting == "two\n"
    os.close(pipe)
    assert await lines.next_line() == "three"
    assert await lines.next_line() is None
    assert await lines.next_line() is None


async def test_bytes_that_are_no_text(pipe: int) -> None:
    lines = StdinLines()
    os.write(pipe, b"\xff\xfe\n")
    os.close(pipe)
    with pytest.raises(UnicodeDecodeError):
        await lines.next_line()


async def test_more_lines_than_are_read_ahead(pipe: int) -> None:
    num_lines = MAX_AHEAD * 3
    os.write(pipe, b"".join(b"%d\n" % number for number in range(num_lines)))
    os.close(pipe)
    lines = StdinLines()
    assert [await lines.next_line() for _ in range(num_lines + 1)] == [*(f"{n}\n" for n in range(num_lines)), None]


async def test_a_stand_in_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    lines = StdinLines()
    assert [await lines.next_line(), await lines.next_line()] == ["one\n", None]
