"""Decode steps of fixed shapes give the answers of steps of any shape; on a CPU a "capture" just computes again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from generator.letters import ask, mixed_requests, read

pytestmark = pytest.mark.torch
OpenEngine = Callable[..., Any]


class Captured:
    """Counts captures and replays, and refuses a replay whose shapes are not those of its capture."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, compute: Any) -> Any:
        self.num_captures += 1
        shape = compute().logits.shape

        def replay() -> Any:
            self.num_replays += 1
            output = compute()
            assert output.logits.shape == shape
            return output

        return replay


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    from deployments.generator import runner

    captured, plain = Captured(), runner.BatchRunner

    def build(*args: Any) -> Any:
        return plain(*args[:5], captured)

    monkeypatch.setattr(runner, "BatchRunner", build)
    return captured


async def test_answers_are_those_of_transformers(
    open_test_engine: OpenEngine, captured: Captured, reference: Any
) -> None:
    engine = open_test_engine(num_slots=6)
    requests = mixed_requests()
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    alone = [await read(engine.stream(request)) for request in requests]
    expected = [len(reference(request)) for request in requests]
    assert [answer.last.usage.completion_tokens for answer in answers] == expected
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert captured.num_replays > 3 * captured.num_captures, "shapes repeat"


async def test_answers_are_those_of_steps_of_any_shape(
    open_test_engine: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed_requests(40)
    plain = open_test_engine(num_slots=5)
    expected = [(await read(plain.stream(request))).text for request in requests]
    with monkeypatch.context() as patch:
        from deployments.generator import runner

        plain_runner, captured = runner.BatchRunner, Captured()
        patch.setattr(runner, "BatchRunner", lambda *args: plain_runner(*args[:5], captured))
        engine = open_test_engine(num_slots=5)
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    assert [answer.text for answer in answers] == expected
    assert captured.num_replays


async def test_the_last_position_of_the_context_can_be_used(open_test_engine: OpenEngine, captured: Captured) -> None:
    """What rows without a sequence write must not lie where one may read."""
    engine = open_test_engine(num_slots=3, max_context_tokens=40)
    answers = await asyncio.gather(
        *(
            read(engine.stream(ask(f"count {number}", request_id=str(number), max_new_tokens=100)))
            for number in range(3)
        )
    )
    assert {answer.last.finish_reason for answer in answers} <= {"length", "stop"}
    assert captured.num_replays


@pytest.mark.parametrize(
    ("num_slots", "buckets"), [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_buckets_reach_all_slots(num_slots: int, buckets: list[int]) -> None:
    from deployments.generator.static_decode import _row_buckets

    assert _row_buckets(num_slots) == buckets
