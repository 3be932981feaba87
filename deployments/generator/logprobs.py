"""How probable the model found the token that was chosen, and which ones it found more probable.

Of the model's own distribution: read before rules, masks, penalties and filters change the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Natural logarithms of probabilities, of one token of one answer."""

    chosen: float
    top: tuple[tuple[int, float], ...]  # token id and its own, most probable first


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """What the rows of a step that asked for log probabilities had to choose from, on the device."""

    asked: Mapping[int, int]  # by row of the step: how many of the most probable tokens
    logits: torch.Tensor  # (A, vocab_size), one for each of `asked` in order
    norms: torch.Tensor  # (A, 1): taken off a logit they make it a log probability
    top: torch.Tensor  # (A, N) float32 log probabilities
    top_ids: torch.Tensor  # (A, N) int64


def score(logits: torch.Tensor, wished: Sequence[int | None]) -> ScoredRows | None:
    """Of (B, vocab_size) logits; rows that wish None cost nothing. Copies: the logits may change afterwards."""
    asked = {row: number for row, number in enumerate(wished) if number is not None}
    if not asked:
        return None
    own = torch.stack([logits[row] for row in asked]).float()
    norms = own.logsumexp(dim=-1, keepdim=True)
    best = own.topk(min(max(asked.values()), own.shape[-1]))
    return ScoredRows(asked, own, norms, best.values - norms, best.indices)


def read(token_ids: torch.Tensor, scored: ScoredRows | None) -> tuple[list[int], dict[int, TokenScores]]:
    """(B,) chosen ids, and by row what was asked for about them. Waits for the device, once."""
    if scored is None:
        chosen: list[int] = token_ids.tolist()
        return chosen, {}
    # Ids below 0 stand for no token.
    own = torch.stack([token_ids[row] for row in scored.asked]).clamp_(min=0)[:, None]
    parts = [token_ids, scored.logits.gather(-1, own) - scored.norms, scored.top, scored.top_ids]
    # One transfer for all: float64 holds ids and float32 exactly.
    numbers: list[float] = torch.cat([part.double().flatten() for part in parts]).tolist()
    ids = [int(number) for number in numbers[: len(token_ids)]]
    return ids, _unpack(numbers[len(token_ids) :], scored)


def _unpack(numbers: Sequence[float], scored: ScoredRows) -> dict[int, TokenScores]:
    num_rows, width = scored.top.shape
    logprobs, top_ids = numbers[num_rows:], numbers[num_rows * (1 + width) :]
    scores: dict[int, TokenScores] = {}
    for index, (row, number) in enumerate(scored.asked.items()):
        begin, end = index * width, index * width + min(number, width)
        top = tuple(zip(map(int, top_ids[begin:end]), logprobs[begin:end], strict=True))
        scores[row] = TokenScores(numbers[index], top)
    return scores
