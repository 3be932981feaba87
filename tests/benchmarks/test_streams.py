"""Requests of exact length through an engine, and which of their gaps count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.engine_memory import measure_memory
from benchmarks.streams import (
    Asked,
    EngineSettings,
    ask_all,
    gaps_around_s,
    long_prompt_among_streams,
    open_engine,
    steady_gaps_s,
)
from benchmarks.summary import Record

NAMES = ("resident", "weights", "kv_cache", "beyond")


def record(*times_s: float, sent_s: float = 0.0) -> Record:
    return Record(0, 0, 0, sent_s, times_s, times_s[-1], len(times_s), 10, 0)


def test_gaps_count_while_all_decode() -> None:
    early, late = record(1, 2, 3, 4, 5), record(2.5, 4, 4.5, 6)

    assert steady_gaps_s([early, late], 12, 100) == [1, 1, 1.5, 0.5]  # from 2.5 to 5


def test_gaps_count_at_about_the_length_that_is_meant() -> None:
    stream = record(1, 2, 4, 7, 11, 16)  # of 11 to 15 tokens before the gaps of 1 to 5

    assert steady_gaps_s([stream], 13, 1) == [2, 3, 4]


def test_streams_that_never_decode_together_have_no_figures() -> None:
    with pytest.raises(RuntimeError, match="all 2 streams"):
        steady_gaps_s([record(1, 2, 3), record(4, 5, 6)], 12, 100)


def test_gaps_that_touch_the_reading_of_a_long_prompt_are_told_from_those_before() -> None:
    long = record(6.0, 7.0, sent_s=3.5)

    before, during = gaps_around_s([(1, 2, 3, 5, 5.5, 8, 9)], long)

    assert before == [1, 1]
    assert during == [2, 0.5, 2.5]


def settings(checkpoint: Path, image_tokens: int = 0) -> EngineSettings:
    return EngineSettings(checkpoint, "smolvlm", "float32", "cpu", 1, 4, 512, image_tokens)


@pytest.mark.torch
@pytest.mark.parametrize("image_tokens", [0, 16])
def test_prompts_and_answers_are_exactly_as_long_as_asked(
    image_tokens: int, tiny_checkpoint: Callable[..., Path]
) -> None:
    asked = [Asked(40 + number, 8 + number, f"key {number}") for number in range(6)]

    with open_engine(settings(tiny_checkpoint("256m"), image_tokens)) as engine:
        records = asyncio.run(ask_all(engine, asked, image_tokens))

    assert [(r.num_prompt_tokens, r.num_tokens) for r in records] == [(40 + n, 8 + n) for n in range(6)]
    for each in records:
        assert each.sent_s < each.times_s[0] <= each.times_s[-1] <= each.end_s


@pytest.mark.torch
def test_a_long_prompt_comes_among_running_streams(tiny_checkpoint: Callable[..., Path]) -> None:
    streams = [Asked(20, 480, f"stream {number}") for number in range(3)]

    with open_engine(settings(tiny_checkpoint("256m"))) as engine:
        times, long = asyncio.run(long_prompt_among_streams(engine, streams, Asked(400, 2, "long")))
        assert engine.wait_idle(30)
        assert engine.check() == ()

    assert long.num_prompt_tokens == 400
    before, during = gaps_around_s(times, long)
    assert len(before) >= 3 * 30
    assert len(during) >= 3


@pytest.mark.torch
@pytest.mark.parametrize("num_tokens", [20, 60])  # before the streams run steadily, and while the long prompt is read
def test_streams_that_end_too_early_are_told(num_tokens: int, tiny_checkpoint: Callable[..., Path]) -> None:
    streams = [Asked(20, num_tokens, "short"), Asked(20, 400, "other")]

    with open_engine(settings(tiny_checkpoint("256m"))) as engine, pytest.raises(RuntimeError, match="a stream ended"):
        asyncio.run(long_prompt_among_streams(engine, streams, Asked(400, 100, "long")))


@pytest.mark.torch
def test_memory_is_that_of_a_process_that_holds_one_engine(tiny_checkpoint: Callable[..., Path]) -> None:
    row = measure_memory(EngineSettings(tiny_checkpoint("256m"), "smolvlm", "float32", "cpu", 1, 4, 128, 0, 0))

    resident, weights, kv_cache, beyond = (float(str(row[f"{name}_mb"])) for name in NAMES)
    assert 0 < weights < 5
    assert kv_cache > 0
    assert 50 < beyond <= resident
    assert beyond == pytest.approx(resident - weights - kv_cache, abs=0.3)


@pytest.mark.torch
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RuntimeError, match="these are not llama's layers"):
        measure_memory(EngineSettings(tmp_path, "smolvlm", "float32", "cpu", 1, 4, 128, 0))
