"""One choice for all rows: what rules forbid is not chosen, and a row that fails is told so once."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

import pytest

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

    rng = None
    sampling = SamplingParams()

    def __init__(self, rules: Any = None) -> None:
        self.rules = rules
        self.repetition: Any = None


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
