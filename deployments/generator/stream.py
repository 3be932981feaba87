"""The event loop's end of one answer: chunks wait here for their reader, merged when the reader is slower.

Lives on one event loop; other threads reach it through `deliver_soon`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from deployments.types import Chunk, Usage


class AnswerStream:
    """Chunks in, chunks out, for one reader. Must be made on the event loop of its reader."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._pending: Chunk | None = None
        self._error: Exception | None = None
        self._arrival = asyncio.Event()

    @property
    def is_reachable(self) -> bool:
        return not self.loop.is_closed()

    def push(self, chunk: Chunk) -> None:
        if self._error is None:
            self._pending = chunk if self._pending is None else merge(self._pending, chunk)
            self._arrival.set()

    def fail(self, error: Exception) -> None:
        """End the stream with `error`, after what is pending; the first error counts."""
        if self._error is None:
            self._error = error
            self._arrival.set()

    async def next_chunk(self) -> Chunk:
        """Everything that came since the last call, as one chunk. Raises the error that ended the stream."""
        await self._arrival.wait()
        if self._pending is not None:
            chunk, self._pending = self._pending, None
            if self._error is None:
                self._arrival.clear()
            return chunk
        assert self._error is not None
        raise self._error


def merge(earlier: Chunk, later: Chunk) -> Chunk:
    """Both as one. What only a last chunk has is the later's."""
    return replace(
        later,
        usage=later.usage or _use_more(earlier.usage, later.num_tokens),
        timings=later.timings or earlier.timings,
        text=earlier.text + later.text,
        num_tokens=earlier.num_tokens + later.num_tokens,
        thought=earlier.thought + later.thought,
        found=earlier.found + later.found,
        logprobs=earlier.logprobs + later.logprobs,
        token_ids=earlier.token_ids + later.token_ids,
    )


def _use_more(usage: Usage | None, num_tokens: int) -> Usage | None:
    return usage and replace(usage, completion_tokens=usage.completion_tokens + num_tokens)


Delivery = tuple[AnswerStream, Chunk | Exception]


def deliver_soon(deliveries: Iterable[Delivery]) -> None:
    """Hand over from any thread what one step made: one wake-up per event loop, not one per stream."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        by_loop[delivery[0].loop].append(delivery)
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, batch)
        except RuntimeError:
            # A closed loop has no readers left; its sequences are dropped before the next step (`is_reachable`).
            if not loop.is_closed():
                raise


def _deliver(batch: Iterable[Delivery]) -> None:
    for stream, item in batch:
        if isinstance(item, Chunk):
            stream.push(item)
        else:
            stream.fail(item)
