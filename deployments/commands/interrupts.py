"""Ctrl-C as an event of the conversation, for as long as somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Left(Exception):
    """The person left by Ctrl-C."""


@contextlib.contextmanager
def on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `act` instead of what it did before; in the instant that it comes, so it must be short.

    Not the event loop's own signal handlers: those are called a turn of the loop later, and one that was taken away by
    then loses the signal. In the main thread only.
    """
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        act()
        loop.call_soon_threadsafe(lambda: None)  # wakes the loop

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
