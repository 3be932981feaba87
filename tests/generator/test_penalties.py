"""Presence and frequency penalties: OpenAI's formula, over the answer alone, in any company and in both modes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from generator.letters import LetterPrompts, ask, mixed_requests, read, to_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.types import GenerateRequest

if TYPE_CHECKING:
    from deployments.generator.penalties import Discount

pytestmark = pytest.mark.torch
VOCAB_SIZE = 6


def discount(presence: float, frequency: float, said: list[int], max_tokens: int = 20) -> Discount:
    import torch

    from deployments.generator.penalties import Discount

    made = Discount(presence, frequency, max_tokens=max_tokens, device=torch.device("cpu"))
    for token_id in said:
        made.add(token_id)
    return made


Penalty = st.floats(-2, 2, width=32)
Said = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=20)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(Penalty, Penalty, Said)), min_size=1, max_size=5))
def test_each_row_follows_the_formula(rows: list[tuple[float, float, list[int]] | None]) -> None:
    """logit - frequency * count - presence * (count > 0)."""
    import torch

    from deployments.generator.penalties import take_off

    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    for row, each in enumerate(rows):
        if each is not None:
            presence, frequency, said = each
            for token_id, count in Counter(said).items():
                expected[row, token_id] -= frequency * count + presence
    take_off(logits, [each and discount(*each) for each in rows])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_each_token_has_one_place() -> None:
    said = discount(0.5, 0.25, [4, 2, 4, 4], max_tokens=4)
    assert said.token_ids.tolist() == [4, 2]
    assert said.amounts.tolist() == [1.25, 0.75]
    for token_id in (0, 1):  # as many as there is room for
        said.add(token_id)
    assert said.token_ids.tolist() == [4, 2, 0, 1]


def test_what_is_ruled_out_stays_so() -> None:
    import torch

    from deployments.generator.penalties import take_off

    logits = torch.tensor([[-torch.inf, 1.0]])
    take_off(logits, [discount(-2.0, -2.0, [0])])
    assert logits.tolist() == [[-torch.inf, 1.0]]


# --------------------------------------------------------------------------------- in the engine


def generate(llama: Any, request: GenerateRequest) -> list[int]:
    """A plain greedy loop over transformers' model: the whole text again for each token."""
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    sampling, prompts = request.sampling, LetterPrompts()
    ids = list(prompts.build(request.messages).token_ids)
    num_prompt_tokens = len(ids)
    with torch.inference_mode():
        while len(ids) - num_prompt_tokens < sampling.max_new_tokens:
            logits = llama(torch.tensor([ids])).logits[:, -1]
            logits = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty or 1.0)(torch.tensor([ids]), logits)
            for token_id, count in Counter(ids[num_prompt_tokens:]).items():
                logits[0, token_id] -= sampling.frequency_penalty * count + sampling.presence_penalty
            chosen = int(logits.argmax())
            if chosen in prompts.stop_token_ids:
                break
            ids.append(chosen)
    return ids[num_prompt_tokens:]


def penalized_requests() -> list[GenerateRequest]:
    penalties: list[dict[str, float]] = [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 1.5},
        {},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"presence_penalty": -2.0, "frequency_penalty": -1.0},
        {"presence_penalty": 1.0, "frequency_penalty": 1.0, "repetition_penalty": 1.2},
    ]
    prompts = ["aaaa", "the quick brown fox; " * 5, "x", "tell me more", "why", "what?"]
    return [
        ask(prompt, max_new_tokens=30, request_id=prompt, **given)
        for prompt, given in zip(prompts, penalties, strict=True)
    ]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_answers_equal_a_plain_loop(open_test_engine: Any, llama: Any, mode: str) -> None:
    engine, requests = open_test_engine(mode=mode, num_slots=5), penalized_requests()
    expected = [generate(llama, request) for request in requests]
    answers = await asyncio.gather(*(read(engine.stream(request)) for request in requests))
    assert [to_ids(answer.text) for answer in answers] == expected
    none = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": None}
    without = [generate(llama, replace(each, sampling=replace(each.sampling, **none))) for each in requests]
    assert sum(one != other for one, other in zip(expected, without, strict=True)) >= 4, "penalties should matter"
    assert expected[2] == without[2]


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_a_seed_draws_the_same_in_any_company_with_all_settings(open_test_engine: Any, mode: str) -> None:
    engine = open_test_engine(mode=mode, num_slots=8)
    settings: list[dict[str, Any]] = [
        {"min_p": 0.05},
        {"min_p": 0.02, "presence_penalty": 1.0},
        {"top_p": 0.95, "frequency_penalty": 0.7},
        {"top_k": 40, "repetition_penalty": 1.2, "presence_penalty": -0.5},
        {"num_logprobs": 3},
        {"min_p": 0.01, "num_logprobs": 0, "frequency_penalty": 1.0},
    ]
    drawn = [ask("hello", temperature=1.3, seed=11, max_new_tokens=30, **given) for given in settings]
    alone = [await read(engine.stream(request)) for request in drawn]
    assert len({answer.text for answer in alone}) >= 5
    together = await asyncio.gather(*(read(engine.stream(each)) for each in [*drawn, *mixed_requests()[:4], *drawn]))
    assert [answer.text for answer in together[:6]] == [answer.text for answer in alone]
    assert [answer.text for answer in together[-6:]] == [answer.text for answer in alone]
