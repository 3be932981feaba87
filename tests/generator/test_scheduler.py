"""The scheduler alone: what a plan may never do, over made-up lives of requests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.generator.scheduler import Move, Plan, Prefill, Row, estimate_retry_s, plan_step


def decoding(number: int, slot: int) -> Row:
    return Row(number, num_prompt_tokens=5, num_prefilled=5, slot=slot)


def waiting(number: int, length: int = 5) -> Row:
    return Row(number, num_prompt_tokens=length, num_prefilled=0, slot=None)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan_step([], 4, 16) == Plan((), (), ())


def test_a_newcomer_is_prefilled_while_the_others_decode() -> None:
    plan = plan_step([waiting(7), decoding(1, 0), decoding(2, 1)], 4, 16)
    assert plan == Plan((), (Prefill(7, slot=2, start=0, length=5),), (1, 2))


def test_a_long_prompt_is_computed_in_chunks() -> None:
    plan = plan_step([Row(1, num_prompt_tokens=40, num_prefilled=16, slot=0)], 4, 16)
    assert plan.prefills == (Prefill(1, slot=0, start=16, length=16),)
    assert plan.decodes == ()


def test_the_rest_of_a_chunk_goes_to_the_next_in_line() -> None:
    half_done = Row(1, num_prompt_tokens=40, num_prefilled=32, slot=0)
    plan = plan_step([waiting(3, 30), half_done, waiting(2, 5)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 32, 8), Prefill(2, 1, 0, 5), Prefill(3, 2, 0, 3))
    assert plan.num_prefill_tokens == 16


def test_the_half_done_prompt_goes_before_an_older_one_that_came_later_from_encoding() -> None:
    half_done = Row(5, num_prompt_tokens=40, num_prefilled=16, slot=0)
    assert [p.number for p in plan_step([waiting(2), half_done], 4, 16).prefills] == [5]


def test_without_a_free_slot_all_others_wait() -> None:
    plan = plan_step([waiting(2), decoding(0, 0), decoding(1, 1)], 2, 16)
    assert (plan.prefills, plan.decodes) == ((), (0, 1))


def test_the_last_row_moves_into_the_hole() -> None:
    plan = plan_step([decoding(1, 1), decoding(2, 2), decoding(3, 3)], 4, 16)
    assert plan.moves == (Move(3, source=3, target=0),)
    assert plan.decodes == (3, 1, 2)


def test_a_half_done_prompt_closes_up_so_that_no_newcomer_comes_below_it() -> None:
    half_done = Row(9, num_prompt_tokens=20, num_prefilled=16, slot=3)
    plan = plan_step([decoding(1, 1), half_done, waiting(10)], 4, 16)
    assert plan.moves == (Move(1, 1, 0), Move(9, 3, 1))
    assert plan.prefills == (Prefill(9, 1, 16, 4), Prefill(10, 2, 0, 5))


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    rows = [
        waiting(1),
        replace(waiting(2), priority=1),
        replace(waiting(3), priority=-1),
        replace(waiting(4), priority=1),
    ]
    plan = plan_step(rows, 4, 100)
    assert [prefill.number for prefill in plan.prefills] == [2, 4, 1, 3]
    assert [prefill.number for prefill in plan_step([*rows, decoding(0, 0), decoding(9, 1)], 4, 100).prefills] == [2, 4]


def test_what_is_begun_goes_on_whoever_comes() -> None:
    half_done = Row(1, num_prompt_tokens=40, num_prefilled=16, slot=1)
    plan = plan_step([half_done, replace(waiting(2, 30), priority=7), decoding(0, 0)], 4, 32)
    assert plan == Plan((), (Prefill(1, 1, 16, 24), Prefill(2, 2, 0, 8)), (0,))


def test_a_beginning_that_is_there_is_not_computed() -> None:
    remembered = Row(1, num_prompt_tokens=40, num_prefilled=33, slot=None)
    plan = plan_step([remembered, waiting(2, 30)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 33, 7), Prefill(2, 1, 0, 9))
    assert plan.num_prefill_tokens == 16


# --------------------------------------------------------------------------------- beginnings that are not parted


def mutual(number: int, num_mutual: int, length: int = 60, num_prefilled: int = 0, slot: int | None = None) -> Row:
    return Row(number, length, num_prefilled, slot, num_mutual)


@pytest.mark.parametrize(
    ("num_mutual", "length"),
    [(1, 16), (16, 16), (17, 32), (32, 32), (33, 48), (49, 60), (60, 60)],
)
def test_a_mutual_beginning_takes_as_many_whole_chunks_as_it_needs(num_mutual: int, length: int) -> None:
    plan = plan_step([mutual(1, num_mutual), waiting(2)], 4, 16)
    assert plan.prefills == (Prefill(1, slot=0, start=0, length=length),), "and it is alone in its step"


def test_after_its_beginning_such_a_prompt_is_like_any_other() -> None:
    plan = plan_step([mutual(1, 30, num_prefilled=32, slot=0), waiting(2)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 32, 16),)


@pytest.mark.parametrize("num_mutual", [12, 16, 40])
def test_what_is_left_of_a_chunk_is_not_given_to_a_mutual_beginning_that_it_cannot_hold(num_mutual: int) -> None:
    """Nor to anyone who came later."""
    plan = plan_step([waiting(1), mutual(2, num_mutual), waiting(3)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 0, 5),)
    plan = plan_step([decoding(1, 0), mutual(2, num_mutual), waiting(3)], 4, 16)
    assert plan.prefills == (Prefill(2, 1, 0, 16 if num_mutual <= 16 else 48),)


def test_a_short_mutual_beginning_shares_a_chunk() -> None:
    plan = plan_step([waiting(1), mutual(2, 7), waiting(3)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 0, 5), Prefill(2, 1, 0, 11))


def test_a_mutual_beginning_that_is_there_may_be_followed_by_any_stretch() -> None:
    plan = plan_step([waiting(1), mutual(2, 40, num_prefilled=40), waiting(3)], 4, 16)
    assert plan.prefills == (Prefill(1, 0, 0, 5), Prefill(2, 1, 40, 11))


# --------------------------------------------------------------------------------- made-up lives


@dataclass
class Life:
    """One made-up request: when it comes, how long its prompt and answer are, when its client leaves."""

    arrival: int
    prompt: int
    answer: int
    leaves_after: int | None  # steps since it came
    mutual_share: float  # of the prompt
    priority: int
    reused_share: float  # of what may be remembered

    is_done: bool = False
    slot: int | None = None
    num_prefilled: int = 0
    num_generated: int = 0

    @property
    def num_mutual(self) -> int:
        return round(self.mutual_share * self.prompt)

    @property
    def num_reused(self) -> int:
        """All of a mutual beginning or nothing, and never the last token."""
        count = round(self.reused_share * (self.prompt - 1))
        return count if count >= self.num_mutual else 0


lives = st.builds(
    Life,
    arrival=st.integers(0, 25),
    prompt=st.integers(1, 50),
    answer=st.integers(1, 12),
    leaves_after=st.none() | st.integers(0, 20),
    mutual_share=st.just(0.0) | st.floats(0, 1),
    priority=st.integers(-1, 1),
    reused_share=st.just(0.0) | st.floats(0, 1),
)


@settings(deadline=None)
@given(st.lists(lives, max_size=14), st.integers(1, 5), st.integers(1, 40))
def test_every_plan_is_sound_and_everybody_is_served(lives: list[Life], num_slots: int, chunk: int) -> None:
    """An engine's life on paper: requests come, are computed, end or leave; each plan is checked, then carried out."""
    enough_steps = 60 + sum(life.prompt // chunk + life.answer + 2 for life in lives)
    for step in range(enough_steps):
        for life in lives:
            if life.leaves_after is not None and step >= life.arrival + life.leaves_after:
                life.is_done, life.slot = True, None
        present = {n: life for n, life in enumerate(lives) if life.arrival <= step and not life.is_done}
        for life in present.values():
            life.num_prefilled = max(life.num_prefilled, life.num_reused)
        rows = [
            Row(n, life.prompt, life.num_prefilled, life.slot, life.num_mutual, life.priority)
            for n, life in present.items()
        ]
        plan = plan_step(rows, num_slots, chunk)
        _check(plan, rows, num_slots, chunk)
        _carry_out(plan, present)
    assert all(life.is_done for life in lives)


def _check(plan: Plan, rows: list[Row], num_slots: int, chunk: int) -> None:
    slots = {row.number: row.slot for row in rows if row.slot is not None}
    for move in plan.moves:
        assert slots[move.number] == move.source
        assert move.target not in slots.values(), "moved onto somebody"
        slots[move.number] = move.target
    assert set(plan.decodes) == {row.number for row in rows if row.is_decoding}, "all that decode, decode in every step"
    assert [slots[number] for number in plan.decodes] == list(range(len(plan.decodes)))
    by_number = {row.number: row for row in rows}
    for prefill in plan.prefills:
        row = by_number[prefill.number]
        assert prefill.start == row.num_prefilled
        assert 0 < prefill.length <= row.num_prompt_tokens - prefill.start
        assert prefill.start > 0 or prefill.length >= row.num_mutual, "a mutual beginning was parted"
        assert slots.setdefault(prefill.number, prefill.slot) == prefill.slot
    assert len(set(slots.values())) == len(slots), "two in one slot"
    assert all(0 <= slot < num_slots for slot in slots.values())
    assert plan.num_prefill_tokens <= chunk or _is_one_long_beginning(plan, by_number, chunk)
    admitted = [(-row.priority, row.number) for row in rows if row.slot is None and row.number in slots]
    left_waiting = [(-row.priority, row.number) for row in rows if row.number not in slots]
    assert not left_waiting or not admitted or max(admitted) < min(left_waiting), "first come, first served"
    assert plan.prefills or plan.decodes or not rows, "nobody waits while nothing happens"


def _is_one_long_beginning(plan: Plan, by_number: dict[int, Row], chunk: int) -> bool:
    [prefill] = plan.prefills
    num_mutual = by_number[prefill.number].num_mutual
    return prefill.start == 0 and num_mutual > chunk and prefill.length < num_mutual + chunk


def _carry_out(plan: Plan, present: dict[int, Life]) -> None:
    for move in plan.moves:
        present[move.number].slot = move.target
    for prefill in plan.prefills:
        life = present[prefill.number]
        life.slot, life.num_prefilled = prefill.slot, life.num_prefilled + prefill.length
    finished_prefill = [p.number for p in plan.prefills if present[p.number].num_prefilled == present[p.number].prompt]
    for number in [*plan.decodes, *finished_prefill]:
        life = present[number]
        life.num_generated += 1
        if life.num_generated >= life.answer:
            life.is_done, life.slot = True, None


def test_planning_changes_nothing() -> None:
    rows = [decoding(0, 2), waiting(1)]
    before = [replace(row) for row in rows]
    assert plan_step(rows, 4, 16) == plan_step(rows, 4, 16)
    assert rows == before


@pytest.mark.parametrize(
    ("remaining", "tokens_per_s", "expected_s"),
    [
        ([100, 100], 10.0, 10.0),  # 200 tokens take 20 s, so one of the two is done about every 10 s
        ([4], 100.0, 1.0),  # never less than a second
        ([10_000], 1.0, 120.0),  # never more than a request may take
        ([100], 0.0, 1.0),  # nothing measured yet
        ([], 10.0, 1.0),
    ],
)
def test_retry_is_estimated_from_throughput(remaining: list[int], tokens_per_s: float, expected_s: float) -> None:
    assert estimate_retry_s(remaining, tokens_per_s, 120.0) == expected_s
