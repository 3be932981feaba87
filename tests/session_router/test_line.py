"""Lines before a session: order of arrival, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from deployments.session_router.line import LineFull, Lines
from deployments.session_router.stores import SessionKey

KEY = SessionKey("tenant", "session")
MANY = 100


def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_first_come_first_served() -> None:
    lines, served = Lines(MANY), []

    async def stand(number: int) -> None:
        async with lines.stand(KEY, soon()):
            served.append(number)

    async with lines.stand(KEY, soon()):
        tasks = [asyncio.create_task(stand(number)) for number in range(10)]
        await asyncio.sleep(0)
        assert lines.num_waiting == 10
        assert served == []
    await asyncio.gather(*tasks)
    assert served == list(range(10))
    assert lines.num_waiting == 0
    assert lines._lines == {}, "a line that nobody stands in takes no memory"


async def test_a_deadline_and_a_cancelled_stander_leave_the_line_usable() -> None:
    lines = Lines(MANY)
    async with lines.stand(KEY, soon()):
        with pytest.raises(TimeoutError):
            async with lines.stand(KEY, soon(-1)):
                pytest.fail("the head of the line is taken")
        gone = asyncio.create_task(lines.stand(KEY, soon()).__aenter__())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert lines.num_waiting == 0
    async with lines.stand(KEY, soon()) as place:
        place.wait_here()
        place.wait_here()
        assert lines.num_waiting == 1
    assert lines.num_waiting == 0


async def test_an_empty_line_lets_in_even_at_its_deadline() -> None:
    async with Lines(0).stand(KEY, soon(-1)) as place:
        assert not place.freed.is_set()


async def test_the_place_at_the_head_counts_when_it_waits() -> None:
    lines = Lines(1)
    async with lines.stand(KEY, soon()) as head:
        behind = asyncio.create_task(lines.stand(KEY, soon()).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(LineFull):
            async with lines.stand(KEY, soon()):
                pytest.fail("one waits already")
        with pytest.raises(LineFull):
            head.wait_here()
        behind.cancel()
        await asyncio.wait({behind})
        head.wait_here()
        assert lines.num_waiting == 1
        with pytest.raises(LineFull):
            async with lines.stand(KEY, soon()):
                pytest.fail("the head waits already")
    assert lines._lines == {}


async def test_lines_are_bounded_one_by_one() -> None:
    lines = Lines(0)
    async with lines.stand(KEY, soon()), lines.stand(SessionKey("other", "session"), soon()):
        with pytest.raises(LineFull):
            async with lines.stand(KEY, soon()):
                pytest.fail("nobody may wait")


async def test_waking_reaches_the_head_of_that_line_only() -> None:
    lines = Lines(MANY)
    lines.wake(KEY)  # nobody waits: nothing happens
    async with lines.stand(KEY, soon()) as place, lines.stand(SessionKey("other", "session"), soon()) as other:
        lines.wake(KEY)
        assert place.freed.is_set()
        assert not other.freed.is_set()
