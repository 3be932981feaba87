"""The repetition penalty: transformers' own, for prompt and answer, in any company."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from generator.letters import LetterPrompts, mixed_requests, read, to_ids

from deployments.types import GenerateRequest

if TYPE_CHECKING:
    from deployments.generator.repetition import Repetition

pytestmark = pytest.mark.torch
Reference = Callable[[GenerateRequest], list[int]]


def with_penalty(request: GenerateRequest, penalty: float | None) -> GenerateRequest:
    return replace(request, sampling=replace(request.sampling, repetition_penalty=penalty))


def repetition(penalty: float, token_ids: list[int], vocab_size: int, max_more: int = 10) -> Repetition:
    import torch

    from deployments.generator.repetition import Repetition

    device = torch.device("cpu")
    return Repetition(penalty, token_ids, max_more=max_more, vocab_size=vocab_size, device=device)


@pytest.mark.parametrize("penalty", [0.5, 1.05, 1.3, 10.0])
@pytest.mark.parametrize("vocab_size", [5, 1000])
def test_logits_equal_transformers(penalty: float, vocab_size: int) -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    from deployments.generator.repetition import penalize

    chance = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(3, vocab_size, generator=chance)
    logits[:, 0] = torch.tensor([-torch.inf, torch.inf, 0.0])
    ids = torch.randint(vocab_size, (3, 40), generator=chance)
    repetitions = [repetition(penalty, row[:30].tolist(), vocab_size) for row in ids]
    for row, each in zip(ids, repetitions, strict=True):
        for token_id in row[30:].tolist():
            each.add(token_id)
        assert sorted(each.token_ids.tolist()) == sorted(set(row.tolist()))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    penalize(logits, repetitions)
    assert torch.equal(logits, theirs)


def test_each_row_has_its_own_penalty_or_none() -> None:
    import torch

    from deployments.generator.repetition import penalize

    logits = torch.tensor([[2.0, -2.0, 2.0]]).repeat(5, 1)
    made = [(2.0, [0, 1]), None, (4.0, [2]), (2.0, []), (2.0, [2, 7, -1])]  # 7 and -1 are no tokens
    penalize(logits, [given and repetition(*given, vocab_size=3) for given in made])
    assert logits.tolist() == [
        [1.0, -4.0, 2.0],
        [2.0, -2.0, 2.0],
        [2.0, -2.0, 0.5],
        [2.0, -2.0, 2.0],
        [2.0, -2.0, 1.0],
    ]


def test_there_is_room_for_every_token_of_the_longest_answer() -> None:
    seen = repetition(2.0, [3, 4], vocab_size=100, max_more=5)
    for token_id in (90, 3, 91, 92, 90, 93, 94):
        seen.add(token_id)
    assert seen.token_ids.tolist() == [3, 4, 90, 91, 92, 93, 94]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_answers_equal_generate(open_test_engine: Any, reference: Reference, mode: str) -> None:
    """Places of pictures count as seen, as they do in generate; neighbours have another penalty, or none."""
    engine = open_test_engine(mode=mode, num_slots=5)
    penalties = [1.3, 1.3, None, 1.1, 0.8, 1.3, 2.0, 1.3, 1.0, 1.3, None, 1.3]
    requests = [with_penalty(*pair) for pair in zip(mixed_requests(40), penalties, strict=True)]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    expected = [reference(request) for request in requests]
    assert [to_ids(answer.text) for answer in answers] == expected
    without = [reference(with_penalty(request, None)) for request in requests]
    changed = [number for number in range(12) if expected[number] != without[number]]
    assert len(changed) >= 6, "the penalty should matter"
    assert not {2, 8, 10} & set(changed)


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_the_checkpoints_own_penalty_holds_unless_the_request_has_one(
    open_test_engine: Any, reference: Reference, mode: str
) -> None:
    class Penalizing(LetterPrompts):
        repetition_penalty = 1.3

    engine = open_test_engine(prompts=Penalizing(), mode=mode)
    request = mixed_requests(40)[3]
    own, other, none = [with_penalty(request, penalty) for penalty in (1.3, 0.8, None)]
    assert len({tuple(reference(each)) for each in (own, other, none)}) == 3
    assert to_ids((await read(engine.stream(request))).text) == reference(own)
    assert to_ids((await read(engine.stream(other))).text) == reference(other)
    assert to_ids((await read(engine.stream(with_penalty(request, 1.0)))).text) == reference(none)


async def test_draws_are_penalized_before_they_are_filtered(open_test_engine: Any, reference: Reference) -> None:
    """Of the best one alone there is one draw; were it chosen before the penalty, it would be another."""
    engine = open_test_engine()
    request = with_penalty(mixed_requests(40)[3], 1.3)
    drawn = replace(request, sampling=replace(request.sampling, temperature=0.7, top_k=1, seed=5))
    assert to_ids((await read(engine.stream(drawn))).text) == reference(request)
    assert reference(request) != reference(with_penalty(request, None))
