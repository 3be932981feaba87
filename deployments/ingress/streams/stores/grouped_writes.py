"""A SQLite connection in a thread of its own, where all that is asked for in one moment is one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from deployments.errors import PartUnavailable

T = TypeVar("T")
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class _Work:
    act: Callable[[sqlite3.Connection], Any]
    writes: bool
    done: asyncio.Future[Any]


class GroupedWrites:
    """A transaction costs as much as ten statements, and every token of every stream is one. Used by one event loop."""

    def __init__(self, name: str, open_database: Callable[[], sqlite3.Connection]) -> None:
        """Blocks. Raises what `open_database` raises."""
        self._thread = ThreadPoolExecutor(1, name)
        try:
            self._database = self._thread.submit(open_database).result()
        except BaseException:
            self._thread.shutdown()
            raise
        self._waiting: list[_Work] = []
        self._working: asyncio.Task[None] | None = None
        self._is_closed = False

    async def read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """As `write`, without keeping other processes from writing."""
        return await self._run(act, writes=False)

    async def write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """What `act` returns or raises, once its transaction is committed. If it raises, then before it writes.

        Raises PartUnavailable. Cancelled, it is done all the same.
        """
        return await self._run(act, writes=True)

    async def close(self) -> None:
        """Does what was asked for, first. Closing again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._working is not None:
            await asyncio.wait({self._working})
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    async def _run(self, act: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        if self._is_closed:
            raise PartUnavailable("the stream store is closed", None, RETRY_AFTER_S)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Work(act, writes, done))
        if self._working is None:
            self._working = asyncio.create_task(self._work_off())
        return await done

    async def _work_off(self) -> None:
        """The one place where blocking work leaves the event loop."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            for work, outcome in zip(
                group, await loop.run_in_executor(self._thread, self._transact, group), strict=True
            ):
                _tell(work.done, outcome)
        self._working = None

    def _transact(self, group: list[_Work]) -> list[Any]:
        """A result or an exception for each of them. Raises nothing: whoever waits would wait for ever."""
        try:
            return self._do(group)
        except sqlite3.Error as error:
            unavailable = PartUnavailable(f"the stream store failed: {error}", None, RETRY_AFTER_S)
            unavailable.__cause__ = error
            return [unavailable] * len(group)

    def _do(self, group: list[_Work]) -> list[Any]:
        begin = "BEGIN IMMEDIATE" if any(work.writes for work in group) else "BEGIN"
        try:
            self._database.execute(begin)
            outcomes = [_try(work, self._database) for work in group]
            self._database.execute("COMMIT")
        except sqlite3.Error:
            if self._database.in_transaction:  # some failures, such as a full disk, have rolled back already
                self._database.execute("ROLLBACK")  # should it fail, too, the next group's BEGIN does, and comes here
            raise
        return outcomes


def _try(work: _Work, database: sqlite3.Connection) -> Any:
    try:
        return work.act(database)
    except sqlite3.Error:
        raise  # the whole transaction is in doubt
    except Exception as error:
        return error


def _tell(done: asyncio.Future[Any], outcome: Any) -> None:
    if done.done():  # cancelled: nobody waits for it
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
