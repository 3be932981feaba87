"""Work on a store that a cancelled caller must not leave half done: it goes on without the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


class Uninterrupted:
    """Remembers what still runs, so that nothing is lost to the garbage collector or to a closing store."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()

    async def run(self, work: Coroutine[object, object, T]) -> T:
        """The result of `work`, which runs to its end whatever happens to the caller."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def finish(self) -> None:
        while self._running:
            await asyncio.wait(set(self._running))
