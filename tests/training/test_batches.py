"""Every example is seen once an epoch, with others of its length, in an order that seed and epoch alone decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import ConfigError
from deployments.training.batches import (
    IGNORED,
    SORTED_BATCHES,
    Example,
    StepPlan,
    collate,
    cut_by_length,
    draw_validation_pictures,
)


def example(head: list[int], tail: list[int], targets: list[int], picture: int = 0) -> Example:
    return Example("line 1", picture, *(np.array(ids, np.int32) for ids in (head, tail, targets)))


def plan_of(lengths: list[int], batch_size: int = 3, accumulation: int = 2, seed: int = 0) -> StepPlan:
    return StepPlan(lengths, batch_size, accumulation, seed)


def epoch_of(plan: StepPlan, epoch: int) -> list[int]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [int(index) for step in steps for batch in plan.batches_of(step) for index in batch]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_example_once(lengths: list[int], batch_size: int, accumulation: int, epoch: int) -> None:
    plan = plan_of(lengths, batch_size, accumulation)
    assert sorted(epoch_of(plan, epoch)) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.lists(st.integers(0, 40), max_size=10))
@settings(max_examples=60, deadline=None)
def test_a_step_does_not_depend_on_those_before_it(lengths: list[int], steps: list[int]) -> None:
    jumping = plan_of(lengths)
    for step in steps:
        fresh = plan_of(lengths).batches_of(step)
        assert [batch.tolist() for batch in jumping.batches_of(step)] == [batch.tolist() for batch in fresh]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = list(range(40))
    orders = [epoch_of(plan_of(lengths), 0), epoch_of(plan_of(lengths), 1), epoch_of(plan_of(lengths, seed=1), 0)]
    assert len({tuple(order) for order in orders}) == 3


def test_a_batch_has_examples_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4 * SORTED_BATCHES).tolist()
    plan = plan_of(lengths, batch_size=4, accumulation=1)
    spreads = [np.ptp(np.array(lengths)[plan.batches_of(step)[0]]) for step in range(plan.steps_per_epoch)]
    assert np.mean(spreads) < 1000 / SORTED_BATCHES * 2
    assert np.mean(spreads) < np.ptp(lengths) / 10


def test_steps_accumulate_and_the_last_one_is_shorter() -> None:
    plan = plan_of([1] * 7, batch_size=2, accumulation=3)
    assert plan.steps_per_epoch == 2
    assert [len(plan.batches_of(step)) for step in range(3)] == [3, 1, 3]


def test_cutting_keeps_everything_and_sorts() -> None:
    cuts = cut_by_length(np.arange(5), np.array([9, 1, 5, 1, 7]), 2)
    assert [cut.tolist() for cut in cuts] == [[1, 3], [2, 4], [0]]


def test_rows_are_put_together_around_their_pictures() -> None:
    one = example([1], [2, 3, 4], [IGNORED, 4, 9], picture=5)
    other = example([1, 6], [7], [8], picture=2)
    batch = collate([one, other], image_tokens=2)
    assert batch.token_ids.tolist() == [[1, 0, 0, 2, 3, 4], [1, 6, 0, 0, 7, 0]]
    assert batch.image_places.tolist() == [1, 2, 6 + 2, 6 + 3]
    assert batch.pictures == (5, 2)
    assert batch.columns.tolist() == [4, 5]  # after the tokens 3, 4 and 7
    assert batch.targets.tolist() == [[4, 9], [8, IGNORED]]
    assert (batch.num_targets, batch.num_tokens) == (3, 6 + 5)


@given(st.integers(2, 200), st.floats(0.001, 0.9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_validation_takes_its_share_of_pictures(num_pictures: int, share: float, seed: int) -> None:
    if max(1, round(share * num_pictures)) == num_pictures:
        return
    drawn = draw_validation_pictures(num_pictures, share, seed)
    assert len(drawn) == max(1, round(share * num_pictures))
    assert drawn <= set(range(num_pictures))
    assert drawn == draw_validation_pictures(num_pictures, share, seed)


def test_no_share_draws_nothing() -> None:
    assert draw_validation_pictures(10, 0, seed=0) == frozenset()


def test_one_picture_cannot_be_parted() -> None:
    with pytest.raises(ConfigError, match="1 pictures cannot be parted"):
        draw_validation_pictures(1, 0.05, seed=0)
