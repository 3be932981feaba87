"""The lines of turns that wait for a session in this process: first come, first served, bounded, woken directly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from deployments.session_router.stores import SessionKey


class LineFull(Exception):
    """As many turns wait for the session as may."""


@dataclass(slots=True)
class _Line:
    head: asyncio.Lock = field(default_factory=asyncio.Lock)  # asyncio's lock hands over in order of arrival
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    num_standing: int = 0
    num_waiting: int = 0  # of those standing; the other one, if there is one, finds out whether it must wait


@dataclass(slots=True)
class Place:
    """One turn's place in a line."""

    freed: asyncio.Event  # set by `Lines.wake`
    _line: _Line
    _max_waiting: int
    _is_waiting: bool = False

    def wait_here(self) -> None:
        """Say that this turn waits from now on; again changes nothing. Raises LineFull."""
        if self._is_waiting:
            return
        if self._line.num_waiting >= self._max_waiting:
            raise LineFull
        self._is_waiting = True
        self._line.num_waiting += 1

    def leave(self) -> None:
        self._line.num_waiting -= self._is_waiting
        self._is_waiting = False


class Lines:
    """One line per session that somebody waits for. Used by one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting  # in each line
        self._lines: dict[SessionKey, _Line] = {}

    @property
    def num_waiting(self) -> int:
        return sum(line.num_waiting for line in self._lines.values())

    @contextlib.asynccontextmanager
    async def stand(self, key: SessionKey, deadline: float) -> AsyncIterator[Place]:
        """Enters at the head of the line; others stand behind until it is left.

        Whoever finds the line empty is at its head at once, and waits only when it says so.
        Raises LineFull; TimeoutError when the event loop's clock passes `deadline` first.
        """
        line = self._lines.setdefault(key, _Line())
        place = Place(line.freed, line, self._max_waiting)
        line.num_standing += 1
        try:
            if line.num_standing > 1:
                place.wait_here()
            async with asyncio.timeout_at(deadline):
                await line.head.acquire()
            try:
                yield place
            finally:
                line.head.release()
        finally:
            place.leave()
            line.num_standing -= 1
            if not line.num_standing:
                del self._lines[key]

    def wake(self, key: SessionKey) -> None:
        """Tell the head of the line, if there is one, that the session may be free."""
        line = self._lines.get(key)
        if line is not None:
            line.freed.set()
