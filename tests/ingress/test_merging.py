"""Several streams as one: order, failures, and what is left when it is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from deployments.ingress.merging import merge


class Source:
    """Yields what a test gives it, and fails with what a test gives it."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[object] = asyncio.Queue()
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[object, None]:
        try:
            while (event := await self.given.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.is_closed = True


async def test_events_come_as_they_are_there_and_in_their_own_order() -> None:
    sources = [Source(), Source()]
    async with contextlib.aclosing(merge([source.stream() for source in sources])) as merged:
        for number, source in ((1, 1), (2, 0), (3, 0), (4, 1)):
            sources[source].given.put_nowait(number)
            assert await anext(merged) == number
        sources[0].given.put_nowait(None)
        sources[1].given.put_nowait(5)
        sources[1].given.put_nowait(None)
        assert [event async for event in merged] == [5]
    assert all(source.is_closed for source in sources)


async def test_without_a_reader_all_goes_on_in_the_order_of_each() -> None:
    sources = [Source() for _ in range(3)]
    for source in sources:
        for number in range(4):
            source.given.put_nowait((id(source), number))
        source.given.put_nowait(None)
    events = [event async for event in merge([source.stream() for source in sources])]
    for source in sources:
        assert [event for event in events if event[0] == id(source)] == [(id(source), n) for n in range(4)]  # type: ignore[index]


async def test_the_first_failure_is_raised_behind_what_came_before_it_and_ends_the_others() -> None:
    sources = [Source(), Source()]
    sources[0].given.put_nowait(1)
    sources[0].given.put_nowait(ValueError("boom"))
    merged = merge([source.stream() for source in sources])
    assert await anext(merged) == 1
    with pytest.raises(ValueError, match="boom"):
        await anext(merged)
    assert all(source.is_closed for source in sources)


async def test_failures_at_the_same_time_are_one() -> None:
    sources = [Source(), Source()]
    for source in sources:
        source.given.put_nowait(ValueError("boom"))
    with pytest.raises(ValueError, match="boom"):
        await anext(merge([source.stream() for source in sources]))


async def test_closing_closes_all() -> None:
    sources = [Source(), Source()]
    sources[1].given.put_nowait(1)
    merged = merge([source.stream() for source in sources])
    assert await anext(merged) == 1
    await merged.aclose()
    assert all(source.is_closed for source in sources)


async def test_cancelling_whoever_waits_closes_all() -> None:
    sources = [Source(), Source()]
    merged = merge([source.stream() for source in sources])
    waiting = asyncio.ensure_future(anext(merged))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
