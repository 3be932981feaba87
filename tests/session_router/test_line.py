"""Lines before a session: order of arrival, deadlines, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from deployments.session_router.line import Lines
from deployments.session_router.stores import SessionKey

KEY = SessionKey("tenant", "session")


def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_first_come_first_served() -> None:
    lines, served = Lines(), []

    async def stand(number: int) -> None:
        async with lines.stand(KEY, soon()):
            served.append(number)

    async with lines.stand(KEY, soon()):
        tasks = [asyncio.create_task(stand(number)) for number in range(10)]
        await asyncio.sleep(0)
        assert lines.num_waiting == 11
        assert served == []
    await asyncio.gather(*tasks)
    assert served == list(range(10))
    assert lines.num_waiting == 0
    assert lines._lines == {}, "a line that nobody stands in takes no memory"


async def test_a_deadline_and_a_cancelled_stander_leave_the_line_usable() -> None:
    lines = Lines()
    async with lines.stand(KEY, soon()):
        with pytest.raises(TimeoutError):
            async with lines.stand(KEY, soon(-1)):
                pytest.fail("the head of the line is taken")
        gone = asyncio.create_task(lines.stand(KEY, soon()).__aenter__())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert lines.num_waiting == 1
    async with lines.stand(KEY, soon()):
        assert lines.num_waiting == 1


async def test_an_empty_line_lets_in_even_at_its_deadline() -> None:
    async with Lines().stand(KEY, soon(-1)) as freed:
        assert not freed.is_set()


async def test_waking_reaches_the_head_of_that_line_only() -> None:
    lines = Lines()
    lines.wake(KEY)  # nobody waits: nothing happens
    async with lines.stand(KEY, soon()) as freed, lines.stand(SessionKey("other", "session"), soon()) as other:
        lines.wake(KEY)
        assert freed.is_set()
        assert not other.is_set()
