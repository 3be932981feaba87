"""Figures of one load: what the users' records come to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One answer as its user saw it; times are of one clock."""

    user: int
    request: int
    turn: int
    sent_s: float
    times_s: tuple[float, ...]  # of the pieces of text
    end_s: float
    num_tokens: int
    num_prompt_tokens: int
    num_reused_tokens: int

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.sent_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        return tuple(after - before for before, after in itertools.pairwise(self.times_s))


@dataclass(frozen=True, slots=True)
class Summary:
    num_answers: int
    num_tokens: int
    wall_s: float
    tokens_per_s: float
    tokens_per_answer: float
    ttft_p50_ms: float
    ttft_p95_ms: float
    gap_p50_ms: float | None  # None: every answer came in one piece
    gap_p95_ms: float | None
    gap_max_ms: float | None
    end_p50_ms: float  # request sent to the end of its answer
    prompt_tokens_p50: float
    reused_tokens: int  # of all prompts together
    ttft_p50_ms_by_turn: tuple[float, ...]


def summarize(records: Sequence[Record]) -> Summary:
    """`records` is not empty. The wall time runs from the first question to the end of the last answer."""
    wall_s = max(record.end_s for record in records) - min(record.sent_s for record in records)
    num_tokens = sum(record.num_tokens for record in records)
    gaps = [gap for record in records for gap in record.gaps_s]
    ttfts = [record.ttft_s for record in records]
    turns = sorted({record.turn for record in records})
    return Summary(
        num_answers=len(records),
        num_tokens=num_tokens,
        wall_s=round(wall_s, 3),
        tokens_per_s=round(num_tokens / wall_s, 1),
        tokens_per_answer=round(num_tokens / len(records), 1),
        ttft_p50_ms=_ms(percentile(ttfts, 50)),
        ttft_p95_ms=_ms(percentile(ttfts, 95)),
        gap_p50_ms=_ms(percentile(gaps, 50)) if gaps else None,
        gap_p95_ms=_ms(percentile(gaps, 95)) if gaps else None,
        gap_max_ms=_ms(max(gaps)) if gaps else None,
        end_p50_ms=_ms(percentile([record.end_s - record.sent_s for record in records], 50)),
        prompt_tokens_p50=percentile([record.num_prompt_tokens for record in records], 50),
        reused_tokens=sum(record.num_reused_tokens for record in records),
        ttft_p50_ms_by_turn=tuple(
            _ms(percentile([record.ttft_s for record in records if record.turn == turn], 50)) for turn in turns
        ),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """Between the two nearest values in proportion. `values` is not empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
