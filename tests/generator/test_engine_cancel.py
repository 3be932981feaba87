"""Requests whose client leaves or whose time is over, at every stage: their slots are free at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from generator.letters import (
    WAIT_S,
    EndlessPrompts,
    LetterEncoder,
    Pass,
    Turnstile,
    WatchedLanguage,
    ask,
    picture,
    read,
    reading,
    until,
    user,
)

from deployments.errors import DeadlineExceeded

pytestmark = pytest.mark.torch


async def cancelled(engine: Any) -> dict[str, float]:
    metrics = (await engine.statistics())["metrics"]
    prefix = "generator_cancelled."
    return {name.removeprefix(prefix): count for name, count in metrics.items() if name.startswith(prefix)}


# --------------------------------------------------------------------------------- cancel


async def test_cancel_while_decoding_frees_the_slot_within_a_step(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    stream, other = (engine.stream(ask(text, max_new_tokens=300)) for text in ("abc", "xyz"))
    turnstile.let_one_through()
    await anext(stream)
    first = asyncio.create_task(anext(other))
    await until(lambda: len(engine._worker.sequences()) == 2)
    for _ in range(2):  # the pass that is under way; then the other's prefill, and a decode beside it
        turnstile.let_one_through()
    await first
    await until(lambda: language.passes[-1] == Pass(2))
    await stream.aclose()  # a pass of both is under way
    num_passes = len(language.passes)
    turnstile.open()
    await anext(other)
    await until(lambda: len(language.passes) > num_passes)
    assert {each.num_decodes for each in language.passes[num_passes:]} == {1}, "the very next step computes without it"
    assert (await engine.statistics())["free_slots"] == 3
    assert await cancelled(engine) == {"decode": 1}
    await other.aclose()


async def test_cancel_while_waiting(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=1, prompts=EndlessPrompts())
    async with reading(engine, ask("abc", max_new_tokens=9)) as running, reading(engine, ask("x")) as waiting:
        await turnstile.wait_for_pass()
        await until(lambda: engine._worker.sequences()[1:])
        assert (await engine.statistics())["waiting"] == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await cancelled(engine) == {"waiting": 1}
        turnstile.open()
        assert len((await running).text) == 9


async def test_cancel_while_encoding_cancels_the_pull(open_test_engine: Any) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder)
    async with reading(engine, ask(user(picture("cat", 3), picture("dog", 3)))) as task:
        await until(lambda: encoder.num_waiting == 2)
        [shown] = (await engine.statistics())["running"]
        assert shown["stage"] == "encode"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: encoder.num_cancelled == 2)
    assert await cancelled(engine) == {"encode": 1}


async def test_cancel_in_the_middle_of_prefill(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prefill_chunk_tokens=16)
    async with reading(engine, ask("a" * 100)) as task:
        await turnstile.wait_for_pass()
        turnstile.let_one_through()
        await turnstile.wait_for_pass()
        assert (await engine.statistics())["running"][0]["stage"] == "prefill"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        turnstile.open()
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    assert language.passes == [Pass(0, (16,))] * 2
    assert await cancelled(engine) == {"prefill": 1}


async def test_a_stream_that_was_never_read_costs_nothing(open_test_engine: Any) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask("hi"))
    assert (await engine.statistics())["running"] == []
    await stream.aclose()


async def test_closing_after_the_last_chunk_is_no_cancel(open_test_engine: Any) -> None:
    engine = open_test_engine()
    stream = engine.stream(ask("hi", max_new_tokens=1))
    assert (await anext(stream)).finish_reason == "length"
    await stream.aclose()
    assert await cancelled(engine) == {}


def test_when_the_event_loop_is_gone_its_requests_are_too(
    open_test_engine: Any, turnstile: Turnstile, language: WatchedLanguage
) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        stream = engine.stream(ask("abc", max_new_tokens=300))
        task = asyncio.create_task(anext(stream))
        turnstile.let_one_through()
        await task
        abandoned.append(stream)  # not closed, as when a program just stops

    abandoned: list[Any] = []
    loop.run_until_complete(begin())
    loop.close()
    turnstile.open()
    assert engine.wait_idle(WAIT_S)
    assert len(language.passes) <= 3
    assert len(asyncio.run(read(engine.stream(ask("xyz", max_new_tokens=5)))).text) == 5


# --------------------------------------------------------------------------------- deadlines


async def test_deadline_while_waiting(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(num_slots=1)
    async with reading(engine, ask("abc", max_new_tokens=3)) as running:
        await turnstile.wait_for_pass()
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s \(stage waiting\)"):
            await read(engine.stream(ask("late", timeout_s=0.05)))
        turnstile.open()
        assert await running


async def test_deadline_while_encoding(open_test_engine: Any) -> None:
    encoder = LetterEncoder(gate=asyncio.Event())
    engine = open_test_engine(encoder=encoder)
    with pytest.raises(DeadlineExceeded, match="stage encode"):
        await read(engine.stream(ask(user(picture("cat", 3)), timeout_s=0.05)))
    await until(lambda: encoder.num_cancelled == 1)
    assert encoder.requests[0].timeout_s <= 0.05


async def test_deadline_while_decoding_even_if_nobody_reads(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(prompts=EndlessPrompts())
    stream = engine.stream(ask("abc", max_new_tokens=300, timeout_s=0.5))
    turnstile.let_one_through()
    first = await anext(stream)
    assert first.num_tokens == 1
    await until(lambda: not engine._live)  # the reader does not come back, its time is over all the same
    turnstile.open()
    assert await asyncio.to_thread(engine.wait_idle, WAIT_S)
    with pytest.raises(DeadlineExceeded, match="stage decode"):
        await read(stream)
    assert (await engine.statistics())["metrics"]["generator_requests.deadline"] == 1


async def test_the_engines_own_limit_caps_the_requests(open_test_engine: Any, turnstile: Turnstile) -> None:
    engine = open_test_engine(max_timeout_s=0.05)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await read(engine.stream(ask("abc", timeout_s=1000)))
    turnstile.open()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
async def test_a_request_without_time_left_is_not_begun(open_test_engine: Any, timeout_s: float) -> None:
    engine = open_test_engine()
    with pytest.raises(DeadlineExceeded, match="was over"):
        await read(engine.stream(ask("abc", timeout_s=timeout_s)))
