"""Chance and penalties that are told of many tokens at once stand where they would after one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

pytestmark = pytest.mark.torch


def parts_of(token_ids: Sequence[int], seed: int) -> list[Sequence[int]]:
    cuts = sorted(random.Random(seed).choices(range(len(token_ids) + 1), k=3))
    return [token_ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(token_ids)], strict=True)]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_keys_that_are_passed_over(count: int) -> None:
    from deployments.generator.draws import Draws

    walked, skipped = Draws(7), Draws(7)
    for _ in range(count):
        walked.next_key()
    skipped.skip(count)
    assert [walked.next_key() for _ in range(3)] == [skipped.next_key() for _ in range(3)]


@pytest.mark.parametrize("seed", range(5))
def test_discounts(seed: int) -> None:
    import torch

    from deployments.generator.penalties import Discount

    token_ids = random.Random(seed).choices(range(12), k=30)
    one, many = (Discount(0.4, 0.3, max_tokens=30, device=torch.device("cpu")) for _ in range(2))
    for token_id in token_ids:
        one.add(token_id)
    first, second, *others = parts_of(token_ids, seed)
    many.add_all(first)
    for token_id in second:
        many.add(token_id)
    for part in others:
        many.add_all(part)
    assert torch.equal(one.token_ids, many.token_ids)
    assert torch.equal(one.amounts, many.amounts)


@pytest.mark.parametrize("seed", range(5))
def test_repetitions(seed: int) -> None:
    import torch

    from deployments.generator.repetition import Repetition

    token_ids = random.Random(seed).choices(range(20), k=30)
    one, many = (Repetition(1.5, [3, 4, 99], max_more=30, vocab_size=50, device=torch.device("cpu")) for _ in range(2))
    for token_id in token_ids:
        one.add(token_id)
    first, second, *others = parts_of(token_ids, seed)
    many.add_all(first)
    for token_id in second:
        many.add(token_id)
    for part in others:
        many.add_all(part)
    assert sorted(one.token_ids.tolist()) == sorted(many.token_ids.tolist())
    assert len(set(many.token_ids.tolist())) == len(many.token_ids)
