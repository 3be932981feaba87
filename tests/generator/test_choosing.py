"""One choice for all rows: what rules forbid is not chosen, and a row that fails is told so once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

import pytest

from deployments.errors import InvalidRequest
from deployments.types import SamplingParams

if TYPE_CHECKING:
    import torch

    from deployments.generator.step import Step
    from deployments.models.family import Output

pytestmark = pytest.mark.torch


class Forbidding:
    def __init__(self, *token_ids: int) -> None:
        self._token_ids = token_ids

    def banned_token_ids(self) -> SequenceOf[int]:
        return self._token_ids


class Broken:
    def banned_token_ids(self) -> SequenceOf[int]:
        raise ZeroDivisionError


class Row:
    """What choosing sees of a sequence."""

    def __init__(self, rules: Any = None, mask: Any = None, **sampling: Any) -> None:
        from deployments.generator.sampling import open_rng

        self.sampling = SamplingParams(**sampling)
        self.rng = open_rng(self.sampling)
        self.rules, self.mask = rules, mask
        self.repetition: Any = None
        self.discount: Any = None
        self.scores: Any = None
        self.token_ids: list[int] = []


class Allowing:
    """A mask of these tokens, or one that breaks."""

    def __init__(self, *token_ids: int, fails_in: str = "", takes: int | None = None) -> None:
        self._token_ids, self._fails_in, self._takes = token_ids, fails_in, takes
        self.accepted: list[int] = []

    def fill(self, words: torch.Tensor) -> None:
        if self._fails_in == "fill":
            raise ZeroDivisionError
        for token_id in self._token_ids:
            words[0, token_id // 32] |= 1 << token_id % 32

    def revise(self, token_id: int) -> int:
        if self._fails_in == "revise":
            raise ZeroDivisionError
        return token_id if self._takes is None else self._takes

    def accept(self, token_id: int) -> None:
        if self._fails_in == "accept":
            raise ZeroDivisionError
        self.accepted.append(token_id)


def output(rows: list[list[float]], hidden: list[list[float]] | None = None) -> Output:
    import torch

    from deployments.models.family import Output

    return Output(torch.tensor(rows, dtype=torch.float32), None if hidden is None else torch.tensor(hidden))


def chosen(*rows: tuple[list[Any], Output]) -> Step:
    from deployments.generator.choosing import choose
    from deployments.generator.step import Step

    step = Step()
    choose(list(rows), step)
    return step


def test_nobody_waits() -> None:
    step = chosen()
    assert (step.tokens, step.failures) == ([], [])


def test_rows_of_several_passes_are_chosen_together() -> None:
    first, second, third = Row(), Row(Forbidding(2)), Row(Forbidding(2, 0))
    step = chosen(([first], output([[0, 1, 9]])), ([second, third], output([[1, 0, 9], [1, 0, 9]])))
    assert step.tokens == [(first, 2), (second, 0), (third, 1)]
    assert step.failures == []


def test_hidden_states_are_kept_for_rules_alone() -> None:
    plain, ruled = Row(), Row(Forbidding())
    step = chosen(([plain, ruled], output([[0, 1], [1, 0]], hidden=[[1, 2, 3], [4, 5, 6]])))
    assert list(step.hidden) == [ruled]
    assert step.hidden[ruled].tolist() == [4, 5, 6]


def test_broken_rules_fail_their_own_row() -> None:
    plain, broken, ruled = Row(), Row(Broken()), Row(Forbidding(1))
    step = chosen(([plain, broken, ruled], output([[0, 1], [0, 1], [0, 1]])))
    assert step.tokens == [(plain, 1), (ruled, 0)]
    [(sequence, error)] = step.failures
    assert sequence is broken
    assert isinstance(error, ZeroDivisionError)


def test_a_fault_for_all_is_told_to_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import deployments.generator.choosing as choosing

    def fail(*args: Any) -> list[int]:
        raise MemoryError

    monkeypatch.setattr(choosing, "sample", fail)
    plain, broken = Row(), Row(Broken())
    step = chosen(([plain, broken], output([[0, 1], [0, 1]])))
    assert step.tokens == []
    assert [(sequence, type(error)) for sequence, error in step.failures] == [
        (broken, ZeroDivisionError),
        (plain, MemoryError),
    ]


def test_logits_need_not_lie_side_by_side() -> None:
    """As the last position's do when a model gave more of them."""
    import torch

    from deployments.generator.repetition import Repetition
    from deployments.models.family import Output

    rows = [Row(), Row()]
    logits: torch.Tensor = torch.tensor([[[9.0, 0, 0], [0, 2, 1]], [[9, 0, 0], [0, 1, 2]]])[:, -1]
    for row in rows:
        row.repetition = Repetition(10.0, [1], max_more=2, vocab_size=3, device=torch.device("cpu"))
    step = chosen((rows, Output(logits)))
    assert [token_id for _, token_id in step.tokens] == [2, 2]
    assert rows[0].repetition.token_ids.tolist() == [1, 2]


def test_masks_hold_for_their_own_rows_and_hear_what_was_chosen() -> None:
    masks = [Allowing(0), Allowing(1, 2)]
    free, first, second = Row(), Row(mask=masks[0]), Row(Forbidding(2), masks[1])
    step = chosen(([free, first], output([[0, 1, 9], [0, 1, 9]])), ([second], output([[0, 1, 9]])))
    assert step.tokens == [(free, 2), (first, 0), (second, 1)]
    assert [mask.accepted for mask in masks] == [[0], [1]]


def test_a_mask_may_take_another_token_than_was_drawn() -> None:
    masks = [Allowing(0, 2, takes=0), Allowing(0, 2)]
    free, revised, kept = Row(), Row(mask=masks[0]), Row(mask=masks[1])
    for row in (free, revised, kept):
        row.sampling = SamplingParams(num_logprobs=1)
    step = chosen(([free, revised, kept], output([[0, 1, 9]] * 3)))
    assert step.tokens == [(free, 2), (revised, 0), (kept, 2)]
    assert [mask.accepted for mask in masks] == [[0], [2]]
    assert revised.scores.chosen == pytest.approx(free.scores.chosen - 9)
    assert revised.scores.top == free.scores.top, "the model still found the other one more probable"


@pytest.mark.parametrize("way", ["fill", "revise", "accept"])
def test_a_broken_mask_fails_its_own_row(way: str) -> None:
    free, broken = Row(), Row(mask=Allowing(0, 1, fails_in=way))
    step = chosen(([broken, free], output([[0, 1], [0, 1]])))
    assert step.tokens == [(free, 1)]
    [(sequence, error)] = step.failures
    assert sequence is broken
    assert isinstance(error, ZeroDivisionError)


def test_a_mask_that_allows_nothing_fails_its_own_row() -> None:
    """Bits beyond the vocabulary allow nothing either."""
    free, broken, beyond = Row(), Row(mask=Allowing()), Row(mask=Allowing(2, 31))
    broken.token_ids = [7, 8]
    step = chosen(([broken, free, beyond], output([[0, 1], [0, 1], [0, 1]])))
    assert step.tokens == [(free, 1)]
    assert [sequence for sequence, _ in step.failures] == [broken, beyond]
    assert all(isinstance(error, InvalidRequest) for _, error in step.failures)
    assert str(step.failures[0][1]) == "the grammar allows nothing after 2 tokens, not even an end"


def test_a_row_that_is_no_number_is_told_to_nobody() -> None:
    mask = Allowing(0, 1)
    broken = Row(mask=mask)
    step = chosen(([broken], output([[float("nan"), 0]])))
    assert step.tokens == [(broken, -1)]
    assert mask.accepted == []


def test_log_probabilities_are_of_what_the_model_said() -> None:
    """Not of what mask, rules, penalties and temperature made of it; and only of rows that asked."""
    import torch

    from deployments.generator.penalties import Discount

    given = [[1.0, 3.0, 2.0, 0.0]]
    asking = Row(Forbidding(1), Allowing(0, 1, 2), num_logprobs=2, temperature=1e-6, seed=1)
    asking.discount = Discount(2.0, 0.0, max_tokens=3, device=torch.device("cpu"))
    asking.discount.add(2)
    plain = Row()
    step = chosen(([plain], output(given)), ([asking], output(given)))
    assert step.tokens == [(plain, 1), (asking, 0)]
    assert plain.scores is None
    logprobs = torch.tensor(given[0]).log_softmax(dim=-1).tolist()
    assert asking.scores.chosen == pytest.approx(logprobs[0], abs=1e-6)
    assert [token_id for token_id, _ in asking.scores.top] == [1, 2]
    assert [logprob for _, logprob in asking.scores.top] == pytest.approx(logprobs[1:3], abs=1e-6)


def test_penalties_come_before_masks_and_draws() -> None:
    """The same draw of the one best token, with and without."""
    import torch

    from deployments.generator.penalties import Discount
    from deployments.generator.repetition import Repetition

    drawn = {"temperature": 0.5, "top_k": 1, "seed": 4}
    rows = [Row(**drawn), Row(**drawn), Row(mask=Allowing(0, 1), **drawn)]
    for row in rows[1:]:
        row.discount = Discount(0.5, 0.5, max_tokens=9, device=torch.device("cpu"))
        row.discount.add(2)
        row.repetition = Repetition(2.0, [2], max_more=9, vocab_size=3, device=torch.device("cpu"))
    step = chosen((rows, output([[0.0, 0.6, 3.0], [0.0, 0.6, 3.0], [0.7, 0.6, 3.0]])))
    assert [token_id for _, token_id in step.tokens] == [2, 1, 0]  # 3 / 2 - 1 is less than 0.6
    assert sorted(rows[1].discount.token_ids.tolist()) == [1, 2]
