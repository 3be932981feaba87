"""Chooses the next token of each row: the greatest logit, or a draw from the row's filtered distribution.

Temperature, top_k, top_p and min_p have the meaning, and the order, that transformers' logits warpers give them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from deployments.generator.draws import Draws, exponentials
from deployments.types import SamplingParams

NOT_A_TOKEN = -1  # in place of an id where the logits are not finite
THE_REST = -1  # in place of an id: one of those that were not looked at
# Sorting 50,000 values takes milliseconds on a CPU, and so do 50,000 draws; the token that is chosen is nearly always
# among the first few dozen.
FIRST_LOOKS = (64, 1024)
# Beyond these float32 divides into nan, and nothing is left to change: the greatest token alone, or all alike.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-30, 1e30


@dataclass(frozen=True, slots=True)
class Shortlist:
    """What some rows of a batch may choose from."""

    rows: Sequence[int]
    logits: torch.Tensor  # (M, K) float32, after temperature, the greatest is 0; -inf is ruled out
    token_ids: torch.Tensor  # (M, K) or (K,) int64


def open_rng(sampling: SamplingParams) -> Draws | None:
    """The row's own source of chance, so that its answer does not hang on its neighbours; None for greedy rows."""
    return None if sampling.temperature == 0 else Draws(sampling.seed)


def sample(logits: torch.Tensor, sampling: Sequence[SamplingParams], rngs: Sequence[Draws | None]) -> torch.Tensor:
    """Next token ids of (B, vocab_size) logits as (B,) int64 on their device; NOT_A_TOKEN for a row that holds nan or
    has no finite greatest value.

    Greedy rows cost one reduction over the batch. Does not wait for the device.
    """
    greatest, ids = logits.max(dim=-1)
    keys = {row: rng.next_key() for row, rng in enumerate(rngs) if rng is not None}
    for rows, winners in _draw(logits, sampling, keys):
        # One by one: writing by a list of indices would wait for the device.
        for row, winner in zip(rows, winners, strict=True):
            ids[row] = winner
    return torch.where(torch.isfinite(greatest), ids, NOT_A_TOKEN)


def _draw(
    logits: torch.Tensor, sampling: Sequence[SamplingParams], keys: Mapping[int, int]
) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Rows, and the ids that were drawn for them: those that are filtered together, and those that are not."""
    unfiltered = [row for row in keys if not _is_filtered(sampling[row])]
    if unfiltered:
        yield unfiltered, race_all(_scale(logits, unfiltered, sampling), [keys[row] for row in unfiltered])
    filtered = [row for row in keys if _is_filtered(sampling[row])]
    for shortlist in shortlists(logits, filtered, sampling):
        yield shortlist.rows, race(shortlist.logits, shortlist.token_ids, [keys[row] for row in shortlist.rows])


def race(logits: torch.Tensor, token_ids: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """(M,) ids drawn from softmax of (M, K) logits whose greatest are 0; `token_ids` are (M, K) or (K,).

    The race of exponentials (argmax of p / e, e ~ Exp(1)) is what torch.multinomial does for one draw; that one stops
    the whole CUDA context when a row holds nan. Each token has a draw of its own, so logits that differ in the last
    bits, as they do from batch to batch, still choose the same token.
    """
    column = _column(keys, torch.int64, logits.device)
    first = (logits.exp() / exponentials(column, token_ids)).argmax(dim=-1, keepdim=True)
    return token_ids.expand_as(logits).gather(-1, first).squeeze(-1)


def race_all(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """`race` over the whole vocabulary; changes the logits. On a CPU all but the first few run as one, and among
    themselves if they win: the least of many exponentials is one as well, and when it comes says nothing of whose it
    is.
    """
    all_ids = torch.arange(logits.shape[-1], device=logits.device)
    if not _is_worth_a_look(logits, FIRST_LOOKS):
        return race(logits, all_ids, keys)
    best = logits.topk(FIRST_LOOKS[0])
    rest = logits.scatter_(-1, best.indices, -torch.inf).exp_()  # in place: fresh memory costs more than the numbers
    runners = torch.cat([best.values, rest.sum(dim=-1, keepdim=True).log()], dim=-1)
    names = torch.cat([best.indices, torch.full_like(best.indices[:, :1], THE_REST)], dim=-1)
    winners = race(runners, names, keys)
    again = [index for index, winner in enumerate(winners.tolist()) if winner == THE_REST]
    if again:
        winners[again] = race(_take(rest, again).log(), all_ids, [keys[index] for index in again])
    return winners


# ------------------------------------------------------------------------------------- filters


def shortlists(logits: torch.Tensor, rows: Sequence[int], sampling: Sequence[SamplingParams]) -> Iterator[Shortlist]:
    """What top_k, top_p and min_p leave of (B, vocab_size) logits; each of `rows` is in one list.

    `sampling` is the whole batch's.
    """
    if rows:
        yield from _rank(_scale(logits, rows, sampling), rows, sampling, FIRST_LOOKS)


def _scale(logits: torch.Tensor, rows: Sequence[int], sampling: Sequence[SamplingParams]) -> torch.Tensor:
    """(M, vocab_size) after temperature, the greatest is 0: a constant taken off all logits changes no probability, and
    without it a low temperature makes all of them infinite.
    """
    scores = _take(logits, rows).float()
    temperature = _settings(rows, sampling, _temperature, scores)
    return (scores - scores.amax(dim=-1, keepdim=True)).div_(temperature)


def _rank(
    scaled: torch.Tensor, rows: Sequence[int], sampling: Sequence[SamplingParams], looks: Sequence[int]
) -> Iterator[Shortlist]:
    """Shortlists in descending order: of the first few tokens where these are sure to hold all that is left."""
    if not _is_worth_a_look(scaled, looks):
        ranked = scaled.sort(dim=-1, descending=True, stable=True)
        logits, _ = _filter(ranked.values, scaled, rows, sampling)
        yield Shortlist(rows, logits, ranked.indices)
        return
    best = scaled.topk(looks[0])
    logits, is_whole = _filter(best.values, scaled, rows, sampling)
    done = [index for index, whole in enumerate(is_whole.squeeze(-1).tolist()) if whole]
    if done:
        yield Shortlist([rows[index] for index in done], _take(logits, done), _take(best.indices, done))
    if len(done) < len(rows):
        left = sorted(set(range(len(rows))) - set(done))
        yield from _rank(_take(scaled, left), [rows[index] for index in left], sampling, looks[1:])


def _is_worth_a_look(logits: torch.Tensor, looks: Sequence[int]) -> bool:
    """On a GPU all is quick, and asking whether a few suffice would make the host wait."""
    return logits.device.type == "cpu" and bool(looks) and looks[0] < logits.shape[-1]


def _filter(
    values: torch.Tensor, scaled: torch.Tensor, rows: Sequence[int], sampling: Sequence[SamplingParams]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`values` are the greatest (M, K) of (M, V) scaled logits in descending order. Returned with -inf for what top_k,
    top_p and min_p rule out, and with (M, 1) whether all others are ruled out, too.
    """
    num_looked, vocab_size = values.shape[-1], scaled.shape[-1]
    counts = [min(sampling[row].top_k or vocab_size, vocab_size) for row in rows]
    top_k = _column(counts, torch.int64, values.device)
    top_p, floor = _settings(rows, sampling, _nucleus, values), _settings(rows, sampling, _floor, values)
    has_kth = top_k <= num_looked
    kth = values.gather(-1, (top_k - 1).clamp_(max=num_looked - 1))
    is_kept = ~(has_kth & (values < kth))  # ties with the last one stay
    weights = values.exp() * is_kept
    total = weights.sum(dim=-1, keepdim=True)
    if any(sampling[row].top_p < 1 and count == vocab_size for row, count in zip(rows, counts, strict=True)):
        total = torch.where(top_k == vocab_size, scaled.exp().sum(dim=-1, keepdim=True), total)
    shares = weights / total
    sums = shares.cumsum(dim=-1)
    is_in_nucleus = sums - shares < top_p  # what the more probable ones add up to
    is_in_nucleus[:, 0] = True
    is_kept &= is_in_nucleus & (values >= floor)
    last = values[:, -1:]
    is_whole = torch.where(top_k == vocab_size, (sums[:, -1:] >= top_p) | (last < floor), has_kth & (last < kth))
    return values.masked_fill(~is_kept, -torch.inf), is_whole | (last == -torch.inf)


# ------------------------------------------------------------------------------------- settings as columns


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _temperature(params: SamplingParams) -> float:
    return min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)


def _nucleus(params: SamplingParams) -> float:
    return params.top_p if params.top_p < 1 else math.inf  # sums of shares may round to more than 1


def _floor(params: SamplingParams) -> float:
    """min_p for scaled logits: they are the logarithms of a token's share of the greatest probability."""
    return math.log(params.min_p) if params.min_p else -math.inf


def _settings(
    rows: Sequence[int],
    sampling: Sequence[SamplingParams],
    read: Callable[[SamplingParams], float],
    like: torch.Tensor,
) -> torch.Tensor:
    return _column([read(sampling[row]) for row in rows], like.dtype, like.device)


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(M, 1); pinned on its way to a GPU, so that the host need not wait for it."""
    column = torch.tensor(values, dtype=dtype)[:, None]
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column


def _take(matrix: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Some rows, in ascending order. Not by indices, which would have to travel to the device."""
    return matrix if len(rows) == len(matrix) else torch.stack([matrix[row] for row in rows])
