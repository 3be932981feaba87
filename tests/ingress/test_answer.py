"""An answer's chunks in time, and its end: what comes to its own end, what is cancelled, what is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from ingress.bench import ScriptedGenerator

from deployments.errors import DeadlineExceeded, PartUnavailable
from deployments.ingress import answer as answers
from deployments.ingress.answer import Answer, Stopped, ending_of, find_event, open_answer
from deployments.ingress.deadline import Deadline
from deployments.types import Chunk, GenerateRequest, SamplingParams, Timings, Usage

USAGE = Usage(1, 0, 0, 2)
TIMINGS = Timings(0, 0, 0, 0, 0)
LAST = Chunk("end", 1, "stop", USAGE, TIMINGS)
REQUEST = GenerateRequest("r", "public", (), SamplingParams(), 10)


def soon() -> Deadline:
    return Deadline.of("test", 0.01)


def later() -> Deadline:
    return Deadline.of("test", 100)


async def test_the_chunks_up_to_the_last() -> None:
    scripted = ScriptedGenerator((Chunk("the ", 1), LAST))
    answer = open_answer({"m": scripted}, "m", REQUEST, later())
    assert (answer.stage, answer.is_whole) == ("first_token", False)
    assert (await answer.next_chunk()).text == "the "
    assert (answer.stage, answer.is_whole) == ("stream", False)
    assert ending_of(await answer.next_chunk()).finish_reason == "stop"
    assert answer.is_whole
    await answer.end()
    assert scripted.num_ended == 1
    assert scripted.requests == [REQUEST]


async def test_a_model_without_generator() -> None:
    with pytest.raises(PartUnavailable, match="'m'"):
        open_answer({}, "m", REQUEST, later())


async def test_an_end_in_the_middle() -> None:
    answer = open_answer({"m": ScriptedGenerator((Chunk("half", 1),))}, "m", REQUEST, later())
    await answer.next_chunk()
    with pytest.raises(PartUnavailable, match="in the middle"):
        await answer.next_chunk()


async def test_a_chunk_that_does_not_come_in_time() -> None:
    cancelled = asyncio.Event()

    async def hanging() -> AsyncGenerator[Chunk, None]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        yield LAST

    with pytest.raises(DeadlineExceeded, match=r"the test did not end within 0\.01 s"):
        await Answer(hanging(), soon()).next_chunk()
    assert cancelled.is_set()


async def test_ending_a_half_answer_closes_the_generator() -> None:
    scripted = ScriptedGenerator((Chunk("the ", 1), LAST))
    answer = Answer(scripted.stream(REQUEST), later())
    await answer.next_chunk()
    await answer.end()
    assert scripted.num_ended == 0
    with pytest.raises(PartUnavailable):
        await answer.next_chunk()


async def test_a_generator_that_hangs_after_its_last_chunk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answers, "END_GRACE_S", 0.01)
    closed = asyncio.Event()

    async def hanging() -> AsyncGenerator[Chunk, None]:
        try:
            yield LAST
            await asyncio.Event().wait()
        finally:
            closed.set()

    answer = Answer(hanging(), later())
    await answer.next_chunk()
    await answer.end()
    assert closed.is_set()
    assert "failed after its last chunk" in caplog.text


@pytest.mark.parametrize("is_whole", [True, False])
async def test_failures_at_the_end_are_logged_only(is_whole: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncGenerator[Chunk, None]:
        try:
            yield LAST if is_whole else Chunk("half", 1)
        finally:
            raise ValueError("a bug")

    answer = Answer(failing(), later())
    await answer.next_chunk()
    await answer.end()
    assert "a bug" in caplog.text


# ------------------------------------------------------------------------------------- Deadline, find_event


async def test_time_that_is_left() -> None:
    assert 99 < later().left_s <= 100
    assert Deadline("test", 1, 0).left_s == 0
    assert 49 < Deadline("test", 1, 0).with_at_least(50).left_s <= 50
    assert later().with_at_least(1).left_s > 99


async def test_an_event_of_a_kind_closes_the_others() -> None:
    closed = []

    async def events() -> AsyncGenerator[object, None]:
        try:
            yield "text"
            yield 3
            yield "more"
        finally:
            closed.append(True)

    assert await find_event(int, events()) == 3
    assert closed == [True]
    with pytest.raises(AssertionError, match="float"):
        await find_event(float, events())


async def test_stopped_from_outside() -> None:
    cancelled = asyncio.Event()

    async def hanging() -> AsyncGenerator[Chunk, None]:
        try:
            yield Chunk("half", 1)
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    answer = Answer(hanging(), later())
    await answer.next_chunk()
    waiting = asyncio.create_task(answer.next_chunk())
    await asyncio.sleep(0)
    answer.stop()
    with pytest.raises(Stopped):
        await waiting
    with pytest.raises(Stopped):
        await answer.next_chunk()
    await answer.end()
    assert cancelled.is_set()


async def test_asked_in_another_way() -> None:
    async def twice(generator: ScriptedGenerator, request: GenerateRequest, deadline: Deadline):  # type: ignore[no-untyped-def]
        yield Chunk("first ", 1)
        async for chunk in generator.stream(request):
            yield chunk

    answer = open_answer({"m": ScriptedGenerator((LAST,))}, "m", REQUEST, later(), twice)  # type: ignore[arg-type]
    assert [(await answer.next_chunk()).text for _ in range(2)] == ["first ", "end"]
    await answer.end()
