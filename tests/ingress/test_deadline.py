"""Waits under one limit: what ends them, what is cancelled, and whose cancellation counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from deployments.ingress.deadline import Deadline, Watch


async def hang() -> None:
    await asyncio.Event().wait()


def now_s() -> float:
    return asyncio.get_running_loop().time()


LIMITS: list[Callable[[], Watch]] = [lambda: Watch(at_s=now_s() + 0.02), lambda: Watch(each_s=0.02)]


@pytest.mark.parametrize("build", LIMITS, ids=["at", "each"])
async def test_a_wait_that_is_too_long_is_cancelled_and_raises(build: Callable[[], Watch]) -> None:
    cancelled = []

    async def hanging() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    watch = build()
    with pytest.raises(TimeoutError):
        await watch.wait(hanging)
    assert cancelled == [True]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # the task works on


async def test_what_is_ready_is_given() -> None:
    async def ready() -> int:
        return 3

    watch = Watch(at_s=now_s() + 100)
    assert [await watch.wait(ready) for _ in range(3)] == [3, 3, 3]
    watch.close()


async def test_nothing_is_begun_after_the_time() -> None:
    begun = []

    async def begin() -> None:
        begun.append(True)

    watch = Watch(at_s=now_s() + 0.01)
    await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError):
        await watch.wait(begin)
    assert begun == []


async def test_a_limit_for_each_counts_from_the_beginning_of_each() -> None:
    watch = Watch(each_s=0.1)
    began_s = now_s()
    for _ in range(3):
        await watch.wait(lambda: asyncio.sleep(0.05))
    assert now_s() - began_s > 0.1
    await asyncio.sleep(0.15)  # time between waits does not count
    last_s = now_s()
    with pytest.raises(TimeoutError):
        await watch.wait(hang)
    assert 0.09 < now_s() - last_s < 5


@pytest.mark.parametrize("build", LIMITS, ids=["at", "each"])
async def test_a_closed_watch_ends_nothing(build: Callable[[], Watch]) -> None:
    watch = build()
    watch.close()
    await watch.wait(lambda: asyncio.sleep(0.05))


async def test_a_cancellation_from_outside_stays_one() -> None:
    watch = Watch(at_s=now_s() + 100)
    waiting = asyncio.create_task(watch.wait(hang))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    watch.close()


async def test_a_cancellation_from_outside_counts_more_than_the_time() -> None:
    watch = Watch(at_s=now_s() + 0.01)
    stubborn = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await hang()
        finally:
            stubborn.set()
            await asyncio.sleep(0.01)

    waiting: asyncio.Task[None] = asyncio.create_task(_wait(watch, slow_to_end))
    await stubborn.wait()  # the time is over
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_what_ends_otherwise_when_the_time_is_over_leaves_no_cancellation_behind() -> None:
    async def failing() -> None:
        try:
            await hang()
        except asyncio.CancelledError as error:
            raise ValueError("its own end") from error

    watch = Watch(at_s=now_s() + 0.01)
    with pytest.raises(ValueError, match="its own end"):
        await watch.wait(failing)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_wait_may_be_in_another_task() -> None:
    watch = Watch(at_s=now_s() + 0.05)
    await asyncio.create_task(_wait(watch, lambda: asyncio.sleep(0)))
    with pytest.raises(TimeoutError):
        await asyncio.create_task(_wait(watch, hang))


async def _wait(watch: Watch, begin: Callable[[], Coroutine[Any, Any, None]]) -> None:
    await watch.wait(begin)


# ------------------------------------------------------------------------------------- ended from outside


async def test_ended_now_the_wait_under_way_raises() -> None:
    watch = Watch(at_s=now_s() + 100)
    waiting = asyncio.create_task(watch.wait(hang))
    await asyncio.sleep(0)
    watch.end_now()
    watch.end_now()
    with pytest.raises(TimeoutError):
        await waiting
    assert waiting.cancelling() == 0
    watch.close()


async def test_ended_now_nothing_is_begun() -> None:
    watch = Watch(each_s=100)
    watch.end_now()
    with pytest.raises(TimeoutError):
        await watch.wait(hang)
    watch.close()


async def test_a_deadline_with_so_much_left() -> None:
    deadline = Deadline.of("turn", 100)
    assert 4 < deadline.with_left(5).left_s <= 5
    assert deadline.with_left(-1).left_s == 0
    assert deadline.with_left(5).timeout_s == 100
