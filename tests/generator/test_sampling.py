"""Draws come from the very distribution that transformers' warpers leave, and each row has chances of its own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from deployments.types import SamplingParams

pytestmark = pytest.mark.torch

GRID = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.5, "top_k": 40},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.8, "top_p": 0.01},
    {"temperature": 2.0, "top_p": 0.999},
    {"temperature": 1.1, "top_k": 30, "top_p": 0.8},
    {"temperature": 1.1, "top_k": 10_000, "top_p": 0.5},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.7, "min_p": 0.1},
    {"temperature": 1.4, "top_p": 0.8, "min_p": 0.3},
    {"temperature": 1.4, "top_k": 20, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 100, "top_p": 0.9, "min_p": 0.05},
]


def warped(logits: Any, params: SamplingParams) -> Any:
    """As transformers' generate does it: temperature, top_k, top_p, min_p."""
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = TemperatureLogitsWarper(params.temperature)(None, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    return scores[0]


def filtered_rows(logits: Any, sampling: Sequence[SamplingParams]) -> Any:
    """What is left of (B, vocab_size) logits, put back where it was."""
    import torch

    from deployments.generator.sampling import shortlists

    rebuilt = torch.full_like(logits, -torch.inf)
    rows: list[int] = []
    for shortlist in shortlists(logits, range(len(logits)), sampling):
        rows += shortlist.rows
        for row, left, token_ids in zip(shortlist.rows, shortlist.logits, shortlist.token_ids, strict=True):
            rebuilt[row, token_ids] = left
    assert sorted(rows) == list(range(len(logits)))
    return rebuilt


def filtered_logits(logits: Any, params: SamplingParams) -> Any:
    return filtered_rows(logits[None], [params])[0]


@pytest.mark.parametrize("params", [SamplingParams(**given) for given in GRID], ids=[str(given) for given in GRID])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("vocab_size", [7, 300, 5000])
def test_filtered_distributions_equal_transformers(params: SamplingParams, spread: float, vocab_size: int) -> None:
    import torch

    for seed in range(5):
        logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
        ours, theirs = filtered_logits(logits, params), warped(logits, params)
        assert torch.equal(ours.isfinite(), theirs.isfinite()), (ours.isfinite().sum(), theirs.isfinite().sum())
        torch.testing.assert_close(ours.softmax(dim=-1), theirs.softmax(dim=-1), rtol=1e-5, atol=0)


def test_ties_at_the_edge_of_top_k_stay() -> None:
    import torch

    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    params = SamplingParams(temperature=1.0, top_k=2)
    assert torch.equal(filtered_logits(logits, params).isfinite(), warped(logits, params).isfinite())
    assert filtered_logits(logits, params).isfinite().sum() == 3


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-40, 1e-38, 1e-30, 1e-7])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 300, "top_p": 0.9}, {"min_p": 0.01}])
def test_the_lowest_temperatures_are_greedy(temperature: float, filters: dict[str, Any]) -> None:
    import torch

    from deployments.generator.sampling import open_rng, sample

    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) * 1e4
    logits[:, 7] = -torch.inf
    params = [SamplingParams(temperature=temperature, seed=row, **filters) for row in range(8)]
    rngs = [open_rng(each) for each in params]
    assert torch.equal(sample(logits, params, rngs), logits.argmax(dim=-1))


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e300])
def test_the_highest_temperatures_make_all_alike_but_what_is_ruled_out(temperature: float) -> None:
    import torch

    logits = torch.tensor([-torch.inf, 5.0, -300.0, 1.0, 2.0])
    probabilities = filtered_logits(logits, SamplingParams(temperature=temperature, top_k=3)).softmax(dim=-1)
    torch.testing.assert_close(probabilities, torch.tensor([0, 1, 0, 1, 1]) / 3)


def test_rows_of_all_kinds_are_filtered_together_as_alone() -> None:
    """Some are sure of their best 64, some of 1024, some need the whole vocabulary."""
    import torch

    rows = [SamplingParams(**given) for given in GRID for _ in range(3)]
    spreads = torch.tensor([0.1, 1.0, 5.0]).repeat(len(GRID))[:, None]
    logits = torch.randn(len(rows), 5000, generator=torch.Generator().manual_seed(1)) * spreads
    together = filtered_rows(logits, rows)
    assert torch.equal(together, torch.stack([filtered_logits(*row) for row in zip(logits, rows, strict=True)]))


@pytest.mark.parametrize("given", [{"top_p": 0.5}, {"top_k": 900}, {"top_k": 2000, "top_p": 0.6}, {"min_p": 0.97}])
def test_what_the_first_looks_cannot_hold_equals_the_full_sort(given: dict[str, Any]) -> None:
    import torch

    from deployments.generator.sampling import FIRST_LOOKS

    logits = torch.randn(20 * FIRST_LOOKS[-1], generator=torch.Generator().manual_seed(0)) * 0.01
    params = SamplingParams(temperature=1.0, **given)
    kept = filtered_logits(logits, params).isfinite()
    assert kept.sum() > FIRST_LOOKS[0]
    # Among thousands of nearly equal values one at the very edge may fall to either side by rounding.
    assert (kept != warped(logits, params).isfinite()).sum() <= 1


@pytest.mark.parametrize("given", [{"top_k": 5}, {"top_k": 64}, {"top_p": 0.999}, {"top_k": 500, "min_p": 0.2}])
def test_ties_and_ruled_out_tokens_beyond_the_first_look(given: dict[str, Any]) -> None:
    import torch

    logits = torch.full((3000,), -torch.inf)
    logits[100:400] = 1.0
    logits[7] = 2.0
    params = SamplingParams(temperature=1.0, **given)
    ours, theirs = filtered_logits(logits, params), warped(logits, params)
    if "top_p" in given:  # which one of many equal tokens is left out is chance
        assert ours.isfinite().sum() == theirs.isfinite().sum()
    else:
        assert torch.equal(ours.isfinite(), theirs.isfinite())


@pytest.mark.parametrize("vocab_size", [5, 400])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}])
def test_draws_follow_the_probabilities(vocab_size: int, filters: dict[str, Any]) -> None:
    """Of 400, more are never looked at than looked at, and they hold a third of all chances."""
    import torch

    from deployments.generator.sampling import open_rng, sample

    params = SamplingParams(temperature=0.5, seed=1, **filters)
    logits = torch.linspace(-2.1, -2.3, vocab_size)  # of equal ones top_p may leave out any
    logits[:5] = torch.tensor([0.5, 0.25, 0.0, -0.6, -torch.inf])
    num_draws, num_rounds = 200, 100
    rngs = [open_rng(replace(params, seed=seed)) for seed in range(num_draws)]
    counts = torch.zeros(vocab_size)
    for _ in range(num_rounds):
        counts += torch.bincount(sample(logits.repeat(num_draws, 1), [params] * num_draws, rngs), minlength=vocab_size)
    num_draws *= num_rounds
    probabilities = warped(logits, params).softmax(dim=-1)
    for share, probability in zip((counts / num_draws).tolist(), probabilities.tolist(), strict=True):
        assert abs(share - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / num_draws)


@pytest.mark.parametrize("vocab_size", [50, 3000])
def test_a_seed_draws_the_same_in_any_company(vocab_size: int) -> None:
    """Greedy ones, filtered ones, ones that others' filters make look further, and one that is nan."""
    import torch

    from deployments.generator.sampling import open_rng, sample

    rows = [SamplingParams(**given, seed=number) for number, given in enumerate([*GRID, {"temperature": 1.3}])]
    rows += [SamplingParams(), SamplingParams(temperature=2.0, seed=5)]
    logits = torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(2)) * 2
    logits[-1, 3] = math.nan
    chance = random.Random(3)
    rngs, lonely = [open_rng(each) for each in rows], [open_rng(each) for each in rows]
    for _ in range(30):
        order = chance.sample(range(len(rows)), chance.randint(1, len(rows)))
        together = sample(logits[order], [rows[row] for row in order], [rngs[row] for row in order]).tolist()
        alone = [sample(logits[row : row + 1], [rows[row]], [lonely[row]]).item() for row in order]
        assert together == alone


def test_a_device_that_must_not_wait_chooses_among_all() -> None:
    """As on a GPU: whole rows are sorted, and no number is looked at. Filtered rows draw the same as on a CPU."""
    import torch

    import deployments.generator.sampling as sampling

    rows = [SamplingParams(**given, seed=number) for number, given in enumerate(GRID[1:])]
    logits = torch.randn(len(rows), 3000, generator=torch.Generator().manual_seed(2)) * 4
    quick = sampling.sample(logits, rows, [sampling.open_rng(each) for each in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_is_worth_a_look", lambda logits, looks: False)
        patch.setattr(torch.Tensor, "tolist", None)
        patch.setattr(torch.Tensor, "__bool__", None)
        patch.setattr(torch.Tensor, "item", None)
        rows.append(SamplingParams(temperature=0.9, seed=1))
        thorough = sampling.sample(torch.cat([logits, logits[:1]]), rows, [sampling.open_rng(each) for each in rows])
    assert torch.equal(thorough[:-1], quick)


def test_greedy_rows_take_the_first_of_the_greatest() -> None:
    import torch

    from deployments.generator.sampling import sample

    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert sample(logits, [SamplingParams()] * 2, [None, None]).tolist() == [1, 0]


def test_rows_without_finite_numbers_are_marked_and_harm_nobody() -> None:
    import torch

    from deployments.generator.sampling import NOT_A_TOKEN, open_rng, sample

    drawn = SamplingParams(temperature=1.0, top_k=2, top_p=0.9, seed=3)
    rows = [[0.0, 1.0, 9.0], [0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3, [-math.inf, 0.0, -math.inf]]
    for params in (SamplingParams(), drawn, replace(drawn, top_k=0, top_p=1.0), replace(drawn, min_p=0.5)):
        rngs = [open_rng(params) for _ in rows]
        ids = sample(torch.tensor(rows), [params] * len(rows), rngs)
        assert ids.tolist() == [2, NOT_A_TOKEN, NOT_A_TOKEN, NOT_A_TOKEN, 1]
