"""Chunks wait for their reader and are merged, never lost; one wake-up serves all streams of a step."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import fields
from typing import Any

import pytest

from deployments.errors import DeadlineExceeded, PartUnavailable
from deployments.generator.stream import AnswerStream, deliver_soon
from deployments.types import Alternative, Box, Chunk, Grounding, Point, Timings, TokenLogprob, Usage

USAGE, TIMINGS = Usage(1, 0, 0, 2), Timings(0, 0, 0, 0, 0)


async def test_pending_chunks_become_one() -> None:
    stream = AnswerStream()
    for chunk in (Chunk("a", 1), Chunk("bc", 2), Chunk("d", 1, "stop", USAGE, TIMINGS)):
        stream.push(chunk)
    assert await stream.next_chunk() == Chunk("abcd", 4, "stop", USAGE, TIMINGS)


async def test_nothing_of_a_chunk_is_lost_when_they_become_one() -> None:
    stream = AnswerStream()
    point, box, about = Point(0.1, 0.2), Box(0, 0, 1, 1), Grounding(0, 2, (Point(0, 0),))
    logprobs = tuple(TokenLogprob(Alternative(number, "x", -1.0)) for number in range(3))
    stream.push(Chunk("", 1, thought="a"))
    stream.push(Chunk("", 2, thought="b", found=(point,), token_ids=(7, 3)))
    stream.push(Chunk("c", 1, found=(box, point), logprobs=logprobs[:1], token_ids=(7,)))
    stream.push(Chunk("d", 2, "length", USAGE, TIMINGS, grounding=(about,), logprobs=logprobs[1:], token_ids=(1, 9)))
    ids = (7, 3, 7, 1, 9)
    whole = Chunk("cd", 6, "length", USAGE, TIMINGS, "ab", (point, box, point), (about,), logprobs, ids)
    assert await stream.next_chunk() == whole
    assert {field.name for field in fields(Chunk) if getattr(whole, field.name)} == {f.name for f in fields(Chunk)}


async def test_what_was_used_is_of_all_up_to_there() -> None:
    stream = AnswerStream()
    early_usage, early_timings = Usage(1, 0, 0, 1), Timings(1, 0, 0, 0, 1)
    stream.push(Chunk("a", 1, None, early_usage, early_timings))
    stream.push(Chunk("b", 1))
    assert await stream.next_chunk() == Chunk("ab", 2, None, Usage(1, 0, 0, 2), early_timings)
    stream.push(Chunk("a", 1, None, early_usage, early_timings))
    stream.push(Chunk("b", 1, "stop", USAGE, TIMINGS))
    assert await stream.next_chunk() == Chunk("ab", 2, "stop", USAGE, TIMINGS)


async def test_a_reader_in_time_gets_each() -> None:
    stream = AnswerStream()
    for text in "ab":
        waiting = asyncio.create_task(stream.next_chunk())
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.push(Chunk(text, 1))
        assert await waiting == Chunk(text, 1)


async def test_an_error_comes_after_what_is_pending_and_stays() -> None:
    stream = AnswerStream()
    stream.push(Chunk("a", 1))
    stream.fail(DeadlineExceeded("late"))
    stream.push(Chunk("b", 1))
    stream.fail(PartUnavailable("later"))
    assert await stream.next_chunk() == Chunk("a", 1)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            await stream.next_chunk()


async def test_one_wake_up_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [AnswerStream() for _ in range(5)]
    loop = asyncio.get_running_loop()
    calls: list[Any] = []
    original = loop.call_soon_threadsafe

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    deliveries = [(stream, Chunk("a", 1)) for stream in streams[:4]] + [(streams[4], PartUnavailable("gone"))]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "call_soon_threadsafe", counted)
        thread = threading.Thread(target=deliver_soon, args=(deliveries,))
        thread.start()
        thread.join()
    assert len(calls) == 1
    assert [await stream.next_chunk() for stream in streams[:4]] == [Chunk("a", 1)] * 4
    with pytest.raises(PartUnavailable):
        await streams[4].next_chunk()


def test_a_closed_loop_has_no_readers() -> None:
    loop = asyncio.new_event_loop()

    async def make() -> AnswerStream:
        return AnswerStream()

    stream = loop.run_until_complete(make())
    assert stream.is_reachable
    loop.close()
    assert not stream.is_reachable
    deliver_soon([(stream, Chunk("a", 1))])
