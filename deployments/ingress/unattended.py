"""Work that must go on after the client it was begun for has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Unattended:
    """Holds its tasks until they are done: the event loop itself holds them weakly."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], context: Context | None = None) -> asyncio.Task[T]:
        """In this context, or in a copy of the caller's."""
        task = asyncio.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for clean-up that goes on without us if we are cancelled; its failure must be logged by itself.

        asyncio.wait, unlike await: neither does our cancellation reach the task, nor its failure hide the reason why
        there is something to clean up.
        """
        await asyncio.wait({self.start(work)})

    async def wait(self, timeout_s: float) -> None:
        """Until one of them is done, or so long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def drain(self) -> None:
        """Wait for all of them; neither does our cancellation reach them, nor their failure us."""
        while self._tasks:
            await asyncio.wait(self._tasks)
