"""Draws come from the very distribution that transformers' warpers leave, and each row has chances of its own."""

from __future__ import annotations

import math
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
]


def warped(logits: Any, params: SamplingParams) -> Any:
    """As transformers' generate does it: temperature, top_k, top_p."""
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(params.temperature)(None, logits[None])
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return scores[0]


@pytest.mark.parametrize("params", [SamplingParams(**given) for given in GRID], ids=[str(given) for given in GRID])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("vocab_size", [7, 300, 5000])
def test_filtered_distributions_equal_transformers(params: SamplingParams, spread: float, vocab_size: int) -> None:
    import torch

    from deployments.generator.sampling import filtered_logits

    for seed in range(5):
        logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
        ours, theirs = filtered_logits(logits, params), warped(logits, params)
        assert torch.equal(ours.isfinite(), theirs.isfinite()), (ours.isfinite().sum(), theirs.isfinite().sum())
        torch.testing.assert_close(ours.softmax(dim=-1), theirs.softmax(dim=-1), rtol=1e-5, atol=0)


def test_ties_at_the_edge_of_top_k_stay() -> None:
    import torch

    from deployments.generator.sampling import filtered_logits

    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0])
    params = SamplingParams(temperature=1.0, top_k=2)
    assert torch.equal(filtered_logits(logits, params).isfinite(), warped(logits, params).isfinite())
    assert filtered_logits(logits, params).isfinite().sum() == 3


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-40, 1e-38, 1e-30, 1e-7])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 300, "top_p": 0.9}])
def test_the_lowest_temperatures_are_greedy(temperature: float, filters: dict[str, Any]) -> None:
    import torch

    from deployments.generator.sampling import open_rng, sample

    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) * 1e4
    logits[:, 7] = -torch.inf
    params = [SamplingParams(temperature=temperature, seed=row, **filters) for row in range(8)]
    rngs = [open_rng(each, torch.device("cpu")) for each in params]
    assert sample(logits, params, rngs) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [1e30, 1e39, 1e300])
def test_the_highest_temperatures_make_all_alike_but_what_is_ruled_out(temperature: float) -> None:
    import torch

    from deployments.generator.sampling import filtered_logits

    logits = torch.tensor([-torch.inf, 5.0, -300.0, 1.0, 2.0])
    probabilities = filtered_logits(logits, SamplingParams(temperature=temperature, top_k=3)).softmax(dim=-1)
    torch.testing.assert_close(probabilities, torch.tensor([0, 1, 0, 1, 1]) / 3)


def test_a_nucleus_wider_than_the_quick_look_equals_the_full_sort() -> None:
    """Flat distributions need more candidates than are looked at first."""
    import torch

    from deployments.generator.sampling import NUCLEUS_CANDIDATES, filtered_logits

    logits = torch.randn(20 * NUCLEUS_CANDIDATES, generator=torch.Generator().manual_seed(0)) * 0.01
    params = SamplingParams(temperature=1.0, top_p=0.5)
    kept = filtered_logits(logits, params).isfinite()
    assert kept.sum() > NUCLEUS_CANDIDATES
    # Among thousands of nearly equal values one at the very edge may fall to either side by rounding.
    assert (kept != warped(logits, params).isfinite()).sum() <= 1


def test_draws_follow_the_probabilities() -> None:
    import torch

    from deployments.generator.sampling import draw

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rng = torch.Generator().manual_seed(1)
    num_draws = 20_000
    counts = torch.zeros(5)
    for _ in range(num_draws):
        counts[draw(probabilities.log(), rng)] += 1
    for share, probability in zip((counts / num_draws).tolist(), probabilities.tolist(), strict=True):
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / num_draws)


def test_greedy_rows_take_the_first_of_the_greatest() -> None:
    import torch

    from deployments.generator.sampling import sample

    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert sample(logits, [SamplingParams()] * 2, [None, None]) == [1, 0]


def test_rows_without_finite_numbers_are_marked_and_harm_nobody() -> None:
    import torch

    from deployments.generator.sampling import NOT_A_TOKEN, open_rng, sample

    drawn = SamplingParams(temperature=1.0, top_k=2, top_p=0.9, seed=3)
    rows = [[0.0, 1.0, 9.0], [0.0, math.nan, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3, [-math.inf, 0.0, -math.inf]]
    for params in (SamplingParams(), drawn):
        rngs = [open_rng(params, torch.device("cpu")) for _ in rows]
        ids = sample(torch.tensor(rows), [params] * len(rows), rngs)
        assert ids == [2, NOT_A_TOKEN, NOT_A_TOKEN, NOT_A_TOKEN, 1]


def test_seeds() -> None:
    import torch

    from deployments.generator.sampling import open_rng

    device = torch.device("cpu")

    def numbers(seed: int | None) -> list[float]:
        rng = open_rng(SamplingParams(temperature=1.0, seed=seed), device)
        return torch.rand(3, generator=rng).tolist()

    assert open_rng(SamplingParams(temperature=0.0, seed=1), device) is None
    assert numbers(7) == numbers(7)
    assert numbers(7) != numbers(8)
    assert numbers(2**63 - 1) == numbers(2**63 - 1)
    assert numbers(None) != numbers(None)
