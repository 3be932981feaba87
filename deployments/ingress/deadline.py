"""The time that a request may take, and waiting that ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
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

    async def wait(self, waiting: Awaitable[T]) -> T:
        """Raises DeadlineExceeded and cancels what is waited for.

        For one step at a time: a timeout block around a yield would cancel whichever task pulls the next event.
        """
        try:
            async with asyncio.timeout_at(self.at_s):
                return await waiting
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the {self.what} did not end within {self.timeout_s:g} s (ingress.turn_timeout_s)"
            ) from error


def _now_s() -> float:
    return asyncio.get_running_loop().time()
