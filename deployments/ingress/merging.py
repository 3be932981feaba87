"""Several streams of events as one, each event as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

Event = TypeVar("Event")


async def merge(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """All events of all streams; those of one stay in their order. The first failure is raised and ends the others.

    Closing it, or cancelling it while it waits, closes all streams.
    """
    # Unbounded: what a stream holds is bounded by whoever makes it, and a slow reader must not stop a generator that
    # answers others in the same pass.
    arrived: asyncio.Queue[Event | asyncio.Task[None]] = asyncio.Queue()
    readers = [asyncio.create_task(_read(stream, arrived)) for stream in streams]
    for reader in readers:
        reader.add_done_callback(arrived.put_nowait)  # behind its last event
    num_open = len(readers)
    try:
        while num_open:
            event = await arrived.get()
            if isinstance(event, asyncio.Task):
                event.result()  # raises what the stream raised
                num_open -= 1
            else:
                yield event
    finally:
        for reader in readers:
            reader.cancel()
        # Their failures are left: the first one is on its way, and those that come with it say the same.
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(stream: AsyncGenerator[Event, None], arrived: asyncio.Queue[Event | asyncio.Task[None]]) -> None:
    try:
        async for event in stream:
            arrived.put_nowait(event)
    finally:
        await stream.aclose()
