"""Lines of stdin in a thread that nobody waits for: a program that ends must not wait for the next line."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
from typing import IO

MAX_AHEAD = 64  # lines that are read before they are asked for


class StdinLines:
    """Belongs to one event loop; one at a time reads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self._room = threading.Semaphore(MAX_AHEAD)
        self._has_ended = False
        threading.Thread(target=self._pump, name="stdin", daemon=True).start()

    async def next_line(self) -> str | None:
        """With its end; None after the last one. Raises ValueError for bytes that are no text."""
        if self._has_ended:
            return None
        line = await self._lines.get()
        self._room.release()
        self._has_ended = not isinstance(line, str)
        if isinstance(line, Exception):
            raise line
        return line

    def _pump(self) -> None:
        try:
            for line in _own_reader():
                if not self._hand_over(line):
                    return
        except (OSError, ValueError) as error:
            self._hand_over(error)
        else:
            self._hand_over(None)

    def _hand_over(self, line: str | Exception | None) -> bool:
        """Whether anybody is there to take it."""
        self._room.acquire()
        try:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        except RuntimeError:  # the loop is closed
            return False
        return True


def _own_reader() -> IO[str]:
    """Not sys.stdin itself: at its end Python waits for whoever reads there, and gives up with a fatal error."""
    try:
        number = sys.stdin.fileno()
    except io.UnsupportedOperation:  # a stand-in without a file
        return sys.stdin
    return open(number, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False)
