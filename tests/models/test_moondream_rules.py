"""The rules of each kind of answer, fed with chosen tokens: what is banned, what comes next, what is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deployments.models.family import Prompt, ResumableRules
from deployments.models.moondream_config import RegionSizes
from deployments.models.moondream_modules import Region
from deployments.models.moondream_rules import open_rules
from deployments.models.moondream_tokens import CURRENT, OLD, Around, TokenIds
from deployments.types import Box, CaptionTask, DetectTask, Point, PointTask, QueryTask, Task

pytestmark = pytest.mark.torch

DIM, BINS = 8, 16
WORD, EOS, ANSWER, COORD, SIZE, START, END = 40, 0, 3, 5, 6, 7, 9


@pytest.fixture(scope="module")
def region() -> Region:
    torch.manual_seed(0)
    region = Region(RegionSizes(DIM, 4, BINS, 8, 2 * BINS, 12))
    for parameter in region.parameters():
        torch.nn.init.normal_(parameter)
    return region.requires_grad_(requires_grad=False)


def rules_of(region: Region, task: Task | None, max_new_tokens: int = 3, tokens: TokenIds = CURRENT) -> Any:
    prompt = Prompt((0,), np.zeros((1, 1), dtype=np.int64), 1, (), task)
    return open_rules(tokens, region, prompt, max_new_tokens)


def hidden(seed: int = 0) -> torch.Tensor:
    return torch.randn(DIM, generator=torch.Generator().manual_seed(seed))


def coordinate(region: Region, seed: int) -> float:
    return int(region.coordinate_logits(hidden(seed)).argmax()) / BINS


# --------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("task", [None, CaptionTask(), QueryTask("?")])
def test_texts_end_with_the_end_token(region: Region, task: Task | None) -> None:
    rules = rules_of(region, task)
    assert list(rules.banned_token_ids()) == []  # the published code bans nothing at first
    ruling = rules.accept(ANSWER, hidden())
    assert (ruling.token_id, ruling.kind, ruling.is_last) == (ANSWER, "answer", False)
    assert list(rules.banned_token_ids()) == [ANSWER]
    assert rules.accept(WORD, hidden()).token_id == WORD
    assert rules.accept(EOS, hidden()).is_last


def test_what_was_answered_before_is_a_beginning(region: Region) -> None:
    fresh, resumed = rules_of(region, None), rules_of(region, None)
    assert isinstance(resumed, ResumableRules)
    resumed.resume(())
    assert resumed.banned_token_ids() == fresh.banned_token_ids() == ()
    fresh.accept(50, hidden())
    resumed.resume((50,))
    assert list(resumed.banned_token_ids()) == list(fresh.banned_token_ids()) == [CURRENT.answer_id]


def test_points_and_thoughts_are_not_gone_on_with(region: Region) -> None:
    """They follow from hidden states, which nobody kept."""
    for task in (DetectTask("cat"), PointTask("cat"), QueryTask("why?", reasoning=True)):
        assert not isinstance(rules_of(region, task), ResumableRules)


def test_old_revisions_ban_nothing(region: Region) -> None:
    rules = rules_of(region, None, tokens=OLD)
    rules.accept(WORD, hidden())
    assert list(rules.banned_token_ids()) == []
    assert not rules.accept(EOS, hidden()).is_last
    assert rules.accept(50256, hidden()).is_last


# --------------------------------------------------------------------------------- thoughts


def test_thoughts_then_the_suffix_then_the_answer(region: Region) -> None:
    rules = rules_of(region, QueryTask("?", reasoning=True), max_new_tokens=9)
    assert list(rules.banned_token_ids()) == []
    assert rules.accept(EOS, hidden()).kind == "thought"  # unbanned as the first, it means nothing there
    assert list(rules.banned_token_ids()) == [EOS, SIZE]
    assert rules.accept(WORD, hidden()).kind == "thought"
    turn = rules.accept(ANSWER, hidden())
    assert (turn.token_id, turn.kind, turn.is_last) == (3, "silent", False)
    assert list(rules.banned_token_ids()) == []
    assert rules.accept(WORD, hidden()).kind == "answer"
    assert list(rules.banned_token_ids()) == [ANSWER]
    assert rules.accept(EOS, hidden()).is_last


def test_thoughts_have_as_many_tokens_as_the_answer_may(region: Region) -> None:
    rules = rules_of(region, QueryTask("?", reasoning=True), max_new_tokens=2)
    kinds = [rules.accept(WORD, hidden()).kind for _ in range(5)]
    assert kinds == ["thought", "thought", "silent", "answer", "answer"]


def test_a_suffix_of_several_tokens_is_fed_one_by_one(region: Region) -> None:
    tokens = TokenIds(0, 0, {}, Around((1,), (11, 12)), None, None, 3, 4, 5, 6, 7, 9)
    rules = rules_of(region, QueryTask("?", reasoning=True), tokens=tokens)
    fed = [rules.accept(token_id, hidden()) for token_id in (WORD, ANSWER, WORD, WORD)]
    assert [each.token_id for each in fed] == [WORD, 11, 12, WORD]
    assert [each.kind for each in fed] == ["thought", "silent", "silent", "answer"]


def test_thoughts_point(region: Region) -> None:
    rules = rules_of(region, QueryTask("?", reasoning=True), max_new_tokens=99)
    seen = []
    for seed, token_id in enumerate((WORD, COORD, START, COORD, WORD, COORD, COORD, END, COORD, COORD)):
        ruling = rules.accept(token_id, hidden(seed))
        assert ruling.kind == "thought"
        assert ruling.begins_phrase == (token_id in (START, END))
        if token_id == COORD:
            value = torch.tensor([coordinate(region, seed)])
            assert torch.equal(ruling.embedding, region.encode_coordinate(value))
        else:
            assert (ruling.embedding, ruling.token_id) == (None, token_id)
        seen.append(ruling.grounding)
    # A phrase's coordinates are paired within it: the one before START has no partner, nor has the third after it.
    pairs = {5: (3, 5), 9: (8, 9)}
    wanted = [Point(*(coordinate(region, i) for i in pairs[step])) if step in pairs else None for step in range(10)]
    assert seen == wanted


# --------------------------------------------------------------------------------- boxes and points


def test_boxes(region: Region) -> None:
    rules = rules_of(region, DetectTask("boat"))
    for first in (0, 3):
        assert list(rules.banned_token_ids()) == []
        # Which token is chosen between the first and the next object's plays no part, the end token included.
        rulings = [rules.accept(token_id, hidden(first + i)) for i, token_id in enumerate((WORD, EOS, EOS))]
        assert [each.kind for each in rulings] == ["silent"] * 3
        assert [each.found is None for each in rulings] == [True, True, False]
        x, y = coordinate(region, first), coordinate(region, first + 1)
        bins = region.size_logits(hidden(first + 2)).argmax(-1)
        width, height = (2 ** (bins.double() / (BINS - 1) * 10 - 10)).tolist()
        wanted = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        found = rulings[2].found
        assert isinstance(found, Box)
        assert (found.x_min, found.y_min, found.x_max, found.y_max) == pytest.approx(wanted)
        fed = region.encode_size(torch.tensor([width, height]))
        torch.testing.assert_close(rulings[2].embedding, fed)
        assert not any(each.is_last for each in rulings)
    end = rules.accept(EOS, hidden())
    assert (end.is_last, end.found, end.kind) == (True, None, "silent")


def test_points(region: Region) -> None:
    rules = rules_of(region, PointTask("boat"))
    one, two = rules.accept(WORD, hidden(0)), rules.accept(EOS, hidden(1))
    assert (one.found, two.found) == (None, Point(coordinate(region, 0), coordinate(region, 1)))
    assert torch.equal(two.embedding, region.encode_coordinate(torch.tensor([coordinate(region, 1)])))
    assert rules.accept(EOS, hidden()).is_last


@pytest.mark.parametrize(("task", "steps"), [(DetectTask("boat", 2), 6), (PointTask("boat", 2), 4)])
def test_no_more_objects_than_asked_for(region: Region, task: Task, steps: int) -> None:
    rules = rules_of(region, task)
    rulings = [rules.accept(WORD, hidden(step)) for step in range(steps)]
    assert [each.is_last for each in rulings] == [False] * (steps - 1) + [True]
    assert sum(each.found is not None for each in rulings) == 2


def test_nothing_is_found(region: Region) -> None:
    for task in (DetectTask("boat"), PointTask("boat")):
        ruling = rules_of(region, task).accept(EOS, hidden())
        assert (ruling.is_last, ruling.found) == (True, None)
