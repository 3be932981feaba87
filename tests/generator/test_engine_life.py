"""Whom the engine lets in and in which order, and what it leaves behind when it idles, breaks or is closed."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import numpy as np
import pytest
from generator.letters import (
    WAIT_S,
    EndlessPrompts,
    LetterEncoder,
    Turnstile,
    ask,
    features_of,
    mixed_requests,
    picture,
    read,
    reading,
    until,
    user,
)

from deployments.errors import InvalidRequest, Overloaded, PartUnavailable, PromptTooLong
from deployments.types import EncodeRequest, GenerateRequest, ImageFeatures

pytestmark = pytest.mark.torch

# --------------------------------------------------------------------------------- admission


async def test_more_than_slots_and_queue_is_overload(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=2, max_waiting_requests=3)
    tasks = [asyncio.create_task(read(engine.stream(ask("abc", max_new_tokens=4)))) for _ in range(5)]
    await until(lambda: len(engine._live) == 5)
    with pytest.raises(Overloaded, match="2 requests running and 3 waiting") as caught:
        await read(engine.stream(ask("abc")))
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 120
    turnstile.open()
    await asyncio.gather(*tasks)
    assert await read(engine.stream(ask("abc")))
    assert (await engine.statistics())["metrics"]["generator_requests.rejected"] == 1


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_first_come_first_served(open_test_engine: Any, turnstile: Turnstile, mode: str) -> None:
    """Also when the picture of the first takes longer than the prompt of the second."""
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(num_slots=1, encoder=encoder, mode=mode)
    order: list[str] = []

    async def note(request: GenerateRequest) -> None:
        await read(engine.stream(request))
        order.append(request.request_id)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(note(ask("abc", max_new_tokens=3, request_id="running")))
        await turnstile.wait_for_pass()
        tasks.create_task(note(ask(user(picture("cat", 3)), max_new_tokens=3, request_id="first")))
        await until(lambda: encoder.num_waiting)
        tasks.create_task(note(ask("xyz", max_new_tokens=3, request_id="second")))
        await until(lambda: len(engine._worker.sequences()) == 2)
        encoder.gate.set()
        await until(lambda: len(engine._worker.sequences()) == 3)
        turnstile.open()
    assert order == ["running", "first", "second"]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask("abc", temperature=-1.0), InvalidRequest),
        (ask("abc", max_new_tokens=4097), InvalidRequest),
        (ask("z" * 400), PromptTooLong),
    ],
)
async def test_refusals_are_counted(open_test_engine: Any, request_: GenerateRequest, error: type[Exception]) -> None:
    engine = open_test_engine()
    with pytest.raises(error):
        await read(engine.stream(request_))
    assert (await engine.statistics())["metrics"] == {"generator_requests.rejected": 1}


# --------------------------------------------------------------------------------- the end


async def test_closing_fails_open_streams_and_later_ones(open_test_engine: Any, turnstile: Turnstile) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder, num_slots=1, prompts=EndlessPrompts())
    requests = [ask("abc"), ask("waits"), ask(user(picture("cat", 3)))]
    tasks = [asyncio.create_task(read(engine.stream(request))) for request in requests]
    await turnstile.wait_for_pass()
    await until(lambda: encoder.num_waiting)
    turnstile.open()
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [PartUnavailable] * 3
    with pytest.raises(PartUnavailable, match="was closed"):
        await read(engine.stream(ask("abc")))
    engine.close()


async def test_a_fault_of_the_thread_itself_is_told_to_everyone(
    open_test_engine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_test_engine()
    with monkeypatch.context() as patch:
        patch.setattr("deployments.generator.runner.plan_step", lambda *args: 1 / 0)
        with pytest.raises(PartUnavailable, match="internal fault"):
            await read(engine.stream(ask("abc")))
    with pytest.raises(PartUnavailable, match="internal fault"):
        await read(engine.stream(ask("abc")))
    assert "ZeroDivisionError" in caplog.text
    assert engine.closing is not None


async def test_an_idle_engine_sleeps(open_test_engine: Any) -> None:
    engine = open_test_engine()
    await read(engine.stream(ask("abc")))
    assert engine.wait_idle(WAIT_S)
    clock = time.pthread_getcpuclockid(engine._worker._thread.ident)
    before = time.clock_gettime(clock)
    await asyncio.sleep(0.2)  # the time in which a busy thread would show
    assert time.clock_gettime(clock) - before < 0.01


async def test_nothing_outlives_its_request(open_test_engine: Any) -> None:
    from deployments.generator.ticket import Ticket

    arrays: list[weakref.ref[np.ndarray]] = []

    class Noted(LetterEncoder):
        async def encode(self, request: EncodeRequest) -> ImageFeatures:
            features = ImageFeatures(features_of(request.image), "float32", "tower", 0)
            arrays.append(weakref.ref(features.array))
            return features

    engine = open_test_engine(encoder=Noted())
    await asyncio.gather(*(read(engine.stream(request)) for request in mixed_requests(6)))
    gc.collect()
    assert len(arrays) == 7
    assert [array() for array in arrays] == [None] * 7
    tickets = [item for item in gc.get_objects() if type(item) is Ticket]
    assert tickets == [], "held by a timer?"


async def test_check_sees_what_is_left_behind(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine()
    async with reading(engine, ask("abc", request_id="left", max_new_tokens=2)) as task:
        await turnstile.wait_for_pass()
        assert engine.check() == ("request left is still live", "sequence left is still in the worker")
        turnstile.open()
        await task
    engine._worker.runner._cache.slot(2)[1, 1, 0, 7] = 1
    assert engine.check() == ("KV slots [2] are not clear",)
    engine._worker.runner._cache.clear(2, 8)
    prefix = engine._worker.runner.prefix
    prefix.remember("realm", [(0, 1)] * 16, 0)
    match = prefix.match("realm", [(0, 1)] * 17, least=0)
    assert engine.check() == (f"block {match.blocks[0]} has 1 pins",)
    prefix.unpin(match)
