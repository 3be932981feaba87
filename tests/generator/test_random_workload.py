"""Thousands of steps of any workload: every answer is the slow twin's, and nothing is lost, held twice or mixed up."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from deployments.types import SamplingParams

if TYPE_CHECKING:
    from generator.crowd import Crowd, Question

pytestmark = pytest.mark.torch

STEMS = [tuple(range(base, base + length)) for base, length in ((40, 5), (40, 20), (40, 33), (70, 16))]
PICTURES = ["cat", "dog", "owl"]


@pytest.fixture
def inference() -> Iterator[None]:
    import torch

    with torch.inference_mode():
        yield


def any_question(chance: random.Random, finished: list[Question]) -> Question:
    """Of few beginnings, so that they are often shared, and often differ by a picture, a tenant or a token."""
    from generator.crowd import Question

    if finished and chance.random() < 0.3:
        return next_turn(chance, chance.choice(finished[-6:]))
    shown = chance.choice([(), (), (chance.choice(PICTURES),), ("cat",), ("cat", 9, "dog"), ("cat", 9, "cat")])
    if chance.random() < 0.04:
        shown = ("broken",)
    asked = (chance.randrange(100, 104), chance.randrange(100, 200))
    return Question(
        (*chance.choice(STEMS), *shown, *asked) if chance.random() < 0.6 else (*shown, *chance.choice(STEMS), *asked),
        tenant=chance.choice("aaaab"),
        is_mutual=chance.random() < 0.2,
        sampling=SamplingParams(temperature=0.9, seed=chance.randrange(3))
        if chance.random() < 0.2
        else SamplingParams(),
        max_new_tokens=chance.choice([1, 3, 12, 30]),
    )


def next_turn(chance: random.Random, before: Question) -> Question:
    """The question before, then another one; the same again where that would grow too long."""
    asked = (7, chance.randrange(100, 200), 7)
    return replace(before, parts=(*before.parts[:70], *asked)) if len(before.build().token_ids) < 110 else before


def run(crowd: Crowd, num_steps: int, *, every: int) -> None:
    """Joins, leaves and steps as chance has it; checks after each, and compares K/V at every so many."""
    chance = crowd.chance
    for number in range(num_steps):
        wanted = 10 if number // 60 % 2 else 3  # rush and lull
        while len(crowd.live) + len(crowd.preparing) < wanted and chance.random() < 0.6:
            crowd.arrive(cut(crowd, with_answer(crowd, any_question(chance, crowd.finished))))
        for index in reversed(range(len(crowd.preparing))):
            if chance.random() < 0.5:
                (crowd.submit if chance.random() < 0.9 else crowd.give_up)(index)
        if crowd.live and chance.random() < 0.06:
            crowd.cancel(chance.choice(list(crowd.live)))
        crowd.step()
        crowd.check()
        if number % every == 0:
            crowd.check_states()


def with_answer(crowd: Crowd, question: Question) -> Question:
    """Half of the next turns hold the answer to the turn before, token by token."""
    known = [each for each in crowd.finished[-6:] if each.parts == question.parts[:-3]]
    if not known or "broken" in question.parts or crowd.chance.random() < 0.5:
        return question
    parts = (*known[0].parts, *crowd.expected(known[0]), *question.parts[-3:])
    return replace(question, parts=parts, max_new_tokens=8) if len(parts) < 60 else question


def cut(crowd: Crowd, question: Question) -> Question:
    """Some answers began elsewhere."""
    if "broken" in question.parts or crowd.chance.random() < 0.75:
        return question
    whole = crowd.expected(question)
    return replace(question, answered=tuple(whole[: crowd.chance.randrange(len(whole))])) if whole else question


def leave(crowd: Crowd) -> None:
    """Let all that are there come to their end."""
    for index in reversed(range(len(crowd.preparing))):
        crowd.submit(index)
    for _ in itertools.takewhile(lambda _: crowd.live, range(2000)):
        crowd.step()
        crowd.check()
    crowd.check_states()
    assert not crowd.live
    assert crowd.runner.problems() == []


@pytest.mark.parametrize(
    ("seed", "num_slots", "num_blocks", "share_failing"),
    [(1, 4, 7, 0.0), (2, 3, 12, 0.03), (3, 5, 40, 0.0), (4, 1, 3, 0.0), (5, 4, 0, 0.03)],
)
@pytest.mark.usefixtures("inference")
def test_any_workload(llama: Any, seed: int, num_slots: int, num_blocks: int, share_failing: float) -> None:
    crowd = open_crowd(llama, seed, num_slots, num_blocks, share_failing)
    run(crowd, 600, every=20)
    leave(crowd)
    tally, shown = crowd.tally, crowd.runner.prefix.statistics()
    assert tally["finished"] > 60
    assert tally["broken"] > 0, "some had no finite numbers"
    assert tally["gone on with"] > 5
    assert min(tally[f"cancelled in {stage}"] for stage in ("waiting", "prefill", "decode")) > 0
    assert tally["cancelled while encoding"] > 5
    assert tally["slots compared"] > 20
    assert (crowd.flaky.num_failed > 0) == (share_failing > 0)
    if num_blocks:
        assert tally["reused"] > 500
        assert tally["blocks compared"] > 50
        assert shown["evicted"] > 5 * num_blocks
    else:
        assert tally["reused"] == 0


@pytest.mark.usefixtures("inference")
def test_it_goes_the_same_way_again(llama: Any) -> None:
    courses = []
    for _ in range(2):
        crowd = open_crowd(llama, 9, 3, 9, 0.03)
        run(crowd, 60, every=1000)
        leave(crowd)
        courses.append((crowd.finished, crowd.tally, crowd.runner.prefix.statistics()))
    assert courses[0] == courses[1]


def open_crowd(llama: Any, seed: int, num_slots: int, num_blocks: int, share_failing: float) -> Crowd:
    from generator.crowd import Crowd

    from deployments.models.causal import CausalLanguage

    language = CausalLanguage(llama)
    return Crowd(language, seed, num_slots=num_slots, num_blocks=num_blocks, share_failing=share_failing)
