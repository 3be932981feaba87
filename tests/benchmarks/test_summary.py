"""Figures of records that were made by hand."""

from __future__ import annotations

import pytest

from benchmarks.summary import Record, percentile, summarize


def record(*times_s: float, turn: int = 0, sent_s: float = 0.0, num_tokens: int = 4, user: int = 0) -> Record:
    return Record(user, 0, turn, sent_s, times_s, times_s[-1] + 0.5, num_tokens, 88, 3)


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (25, 1.75), (95, pytest.approx(3.85))]
)
def test_percentiles_lie_between_their_neighbours(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_the_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 95) == 7.0


def test_a_summary_counts_from_the_first_question_to_the_end_of_the_last_answer() -> None:
    summary = summarize([record(1.0, 1.1, 1.3, sent_s=0.5), record(2.0, 2.5, sent_s=1.0, num_tokens=6)])

    assert summary.num_answers == 2
    assert summary.num_tokens == 10
    assert summary.wall_s == 2.5  # 0.5 to 3.0
    assert summary.tokens_per_s == 4.0
    assert summary.tokens_per_answer == 5.0
    assert summary.ttft_p50_ms == 750.0
    assert summary.gap_p50_ms == pytest.approx(200.0)
    assert summary.gap_max_ms == pytest.approx(500.0)
    assert summary.reused_tokens == 6


def test_first_tokens_are_told_apart_by_turn() -> None:
    summary = summarize([record(0.3), record(0.1, turn=1), record(0.5), record(0.1, turn=1)])

    assert summary.ttft_p50_ms_by_turn == (400.0, 100.0)


def test_answers_in_one_piece_have_no_gaps() -> None:
    summary = summarize([record(1.0), record(2.0)])

    assert summary.gap_p50_ms is None
    assert summary.gap_max_ms is None
