"""The time that a request may take, and waiting that ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from deployments.errors import DeadlineExceeded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Deadline:
    what: str  # must be over by then, for the error
    timeout_s: float  # that it was given
    at_s: float  # of the event loop's clock

    @classmethod
    def of(cls, what: str, timeout_s: float) -> Deadline:
        return cls(what, timeout_s, _now_s() + timeout_s)

    @property
    def left_s(self) -> float:
        return max(self.at_s - _now_s(), 0.0)

    def with_at_least(self, grace_s: float) -> Deadline:
        """This one, or the one that is `grace_s` from now, whichever is later."""
        return replace(self, at_s=max(self.at_s, _now_s() + grace_s))

    def with_left(self, left_s: float) -> Deadline:
        """This one, so many seconds from now."""
        return replace(self, at_s=_now_s() + left_s)

    async def wait(self, waiting: Awaitable[T]) -> T:
        """Raises DeadlineExceeded and cancels what is waited for.

        For one step at a time: a timeout block around a yield would cancel whichever task pulls the next event.
        """
        try:
            async with asyncio.timeout_at(self.at_s):
                return await waiting
        except TimeoutError as error:
            raise self.exceeded() from error

    def exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"the {self.what} did not end within {self.timeout_s:g} s (ingress.turn_timeout_s)")


class Watch:
    """Many waits, one after another, under one limit: a timer for each of them costs as much as the wait itself.

    The limit is either a time for all of them or a length for each. Close it: until then its timer keeps it.
    """

    def __init__(self, *, at_s: float | None = None, each_s: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._at_s = at_s
        self._each_s = each_s
        self._began_s: float | None = None  # of the wait that is under way
        self._task: asyncio.Task[object] | None = None  # that waits
        self._ended = False
        self._timer = self._loop.call_at(self._end_s(), self._check)

    async def wait(self, begin: Callable[[], Awaitable[T]]) -> T:
        """Raises TimeoutError and cancels what is waited for. In whichever task, one at a time."""
        assert self._task is None
        if self.is_over():
            raise TimeoutError
        self._task = task = asyncio.current_task()
        assert task is not None
        num_cancels = task.cancelling()
        self._began_s = self._loop.time()
        try:
            return await begin()
        except asyncio.CancelledError as error:
            # As in asyncio.timeout: whoever else has cancelled the task counts more than we do.
            if self.is_over() and task.cancelling() - 1 <= num_cancels:
                raise TimeoutError from error
            raise
        finally:
            self._task = self._began_s = None
            if self.is_over():  # by our own cancel(), or we had not begun
                task.uncancel()

    def is_over(self) -> bool:
        return self._ended

    def end_now(self) -> None:
        """Let the time be over, also for the wait that is under way."""
        if self._ended:
            return
        self._ended = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        self._timer.cancel()

    def _end_s(self) -> float:
        if self._at_s is not None:
            return self._at_s
        assert self._each_s is not None
        return (self._loop.time() if self._began_s is None else self._began_s) + self._each_s

    def _check(self) -> None:
        if self._at_s is None and (self._began_s is None or self._end_s() > self._loop.time()):
            self._timer = self._loop.call_at(self._end_s(), self._check)
            return
        self.end_now()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
