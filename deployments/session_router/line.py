"""The lines of turns that wait for a session in this process: first come, first served, woken directly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from deployments.session_router.stores import SessionKey


@dataclass(slots=True)
class _Line:
    head: asyncio.Lock = field(default_factory=asyncio.Lock)  # asyncio's lock hands over in order of arrival
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    num_waiting: int = 0


class Lines:
    """One line per session that somebody waits for. Used by one event loop."""

    def __init__(self) -> None:
        self._lines: dict[SessionKey, _Line] = {}

    @property
    def num_waiting(self) -> int:
        return sum(line.num_waiting for line in self._lines.values())

    @contextlib.asynccontextmanager
    async def stand(self, key: SessionKey, deadline: float) -> AsyncIterator[asyncio.Event]:
        """Enters at the head of the line, with the event that `wake` sets; others stand behind until it is left.

        Raises TimeoutError when the event loop's clock passes `deadline` first.
        """
        line = self._lines.setdefault(key, _Line())
        line.num_waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await line.head.acquire()
            try:
                yield line.freed
            finally:
                line.head.release()
        finally:
            line.num_waiting -= 1
            if not line.num_waiting:
                del self._lines[key]

    def wake(self, key: SessionKey) -> None:
        """Tell the head of the line, if there is one, that the session may be free."""
        line = self._lines.get(key)
        if line is not None:
            line.freed.set()
