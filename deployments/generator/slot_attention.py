"""Attention of one flat pass over the slots: one token each of the decoding rows first, then stretches of prompts.

Nothing is gathered, padded or repeated: decoding rows sit in slots 0 to B-1, so their keys and values are a view of the
cache cut to the occupied length, and the query heads that share a key are rows of one small matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F

from deployments.generator.kv_cache import SlotCache

# What a further kernel call costs, in positions of K and V that are read in vain (measured at 4 heads of 64 values).
CALL_POSITIONS = 512
MAX_SCORES = 2**21  # of queries and keys, held at a time on a CPU: 4 MB
# Lengths are rounded up to this, so that shapes repeat: oneDNN builds a kernel for each new one.
LENGTH_STEP = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt: positions `start` to `start + length` of a slot.

    Each sees itself and what is before it; the first `num_mutual` positions of the slot see each other, and come in one
    piece.
    """

    slot: int
    start: int
    length: int
    num_mutual: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring slots, `first` to `stop`, that attend together."""

    first: int
    stop: int
    length: int  # positions from 0 that are attended to, L
    mask: torch.Tensor  # (rows, 1, 1, L), 0 where attended and -inf elsewhere


class SlotAttention:
    """An `Attend` for one pass. `written` says for each decoding row where its token goes in its slot; behind rows and
    pieces come `num_padding` tokens that are nobody's."""

    def __init__(self, cache: SlotCache, written: Sequence[int], pieces: Sequence[Piece], num_padding: int = 0) -> None:
        assert all(piece.num_mutual <= piece.start or piece.start == 0 for piece in pieces), pieces
        assert all(piece.num_mutual <= piece.stop for piece in pieces), pieces
        self._layers = cache.layers
        self._dtype = cache.store.dtype
        self._pieces = pieces
        self._num_padding = num_padding
        self._begins = list(accumulate((piece.length for piece in pieces), initial=len(written)))
        self._rows = torch.arange(len(written), device=cache.store.device)
        self._written = torch.tensor(written, dtype=torch.int64).to(cache.store.device, non_blocking=True)
        self._context_tokens = cache.context_tokens
        self._runs = [self._open_run(first, stop, max(written[first:stop]) + 1) for first, stop in split_runs(written)]
        self._masks: list[torch.Tensor] = []  # of the pieces, once the number of query heads is known

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        keys, values = self._layers[layer]  # each (slots, kv_heads, context, head_dim)
        mixed: list[torch.Tensor] = []
        if count := len(self._rows):
            keys[self._rows, :, self._written] = key[:count]
            values[self._rows, :, self._written] = value[:count]
            mixed += [self._decode(run, query, keys, values, scale) for run in self._runs]
        if self._pieces and not self._masks:
            self._masks = [self._mask(piece, query.shape[1] // key.shape[1]) for piece in self._pieces]
        for begin, piece, mask in zip(self._begins, self._pieces, self._masks, strict=False):
            here = slice(begin, begin + piece.length)
            keys[piece.slot, :, piece.start : piece.stop] = key[here].transpose(0, 1)
            values[piece.slot, :, piece.start : piece.stop] = value[here].transpose(0, 1)
            mixed.append(_prefill(query[here], keys[piece.slot], values[piece.slot], piece, mask, scale))
        if self._num_padding:
            mixed.append(mixed[0].new_zeros(self._num_padding, mixed[0].shape[1]))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _open_run(self, first: int, stop: int, occupied: int) -> Run:
        length = self._filled_up(occupied)
        reach = torch.arange(length, device=self._rows.device)[None] <= self._written[first:stop, None]
        dtype = torch.float32 if reach.device.type == "cpu" else self._dtype
        return Run(first, stop, length, _additive(reach, dtype)[:, None, None])

    def _filled_up(self, length: int) -> int:
        """By an eighth at most where that is more than LENGTH_STEP."""
        step = max(LENGTH_STEP, 1 << max(length.bit_length() - 4, 0)) if LENGTH_STEP > 1 else 1
        return min(-(-length // step) * step, self._context_tokens)

    def _decode(
        self, run: Run, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        rows, kv_heads = run.stop - run.first, keys.shape[1]
        grouped = query[run.first : run.stop].view(rows, kv_heads, -1, keys.shape[-1])  # heads of one key side by side
        keys, values = (tensor[run.first : run.stop, :, : run.length] for tensor in (keys, values))
        attend = _mix_few if query.device.type == "cpu" else F.scaled_dot_product_attention
        return attend(grouped, keys, values, attn_mask=run.mask, scale=scale).reshape(rows, -1)

    def _mask(self, piece: Piece, group: int) -> torch.Tensor:
        """(1, 1, group * S, L)."""
        device = self._rows.device
        # The last position that each one sees: itself, or the end of the mutual ones.
        horizons = torch.arange(piece.start, piece.stop, device=device).clamp(min=piece.num_mutual - 1)
        reach = torch.arange(self._filled_up(piece.stop), device=device)[None] <= horizons[:, None]
        return _additive(reach, self._dtype).repeat(group, 1)[None, None]


def _prefill(
    query: torch.Tensor,  # (S, heads, head_dim)
    keys: torch.Tensor,  # (kv_heads, context, head_dim)
    values: torch.Tensor,
    piece: Piece,
    mask: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    kv_heads, head_dim = keys.shape[0], keys.shape[2]
    grouped = query.view(piece.length, kv_heads, -1, head_dim).permute(1, 2, 0, 3)  # (kv_heads, group, S, head_dim)
    is_cheaper_plain = query.device.type == "cpu" and query.dtype == torch.bfloat16
    attend = _mix_many if is_cheaper_plain else F.scaled_dot_product_attention
    mixed = attend(
        grouped.reshape(1, kv_heads, -1, head_dim),
        keys[None, :, : mask.shape[-1]],
        values[None, :, : mask.shape[-1]],
        attn_mask=mask,
        scale=scale,
    )
    return mixed.view(kv_heads, -1, piece.length, head_dim).permute(2, 0, 1, 3).reshape(piece.length, -1)


def _mix_many(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attn_mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """SDPA of one sequence, (1, kv_heads, queries, head_dim), for bfloat16 on CPUs: less than half of the time of
    torch's kernel, as long as the scores of some heads at a time stay in the processor's cache."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, keys, values, mask = query[0], keys[0], values[0], attn_mask[0]
    heads = max(1, MAX_SCORES // (query.shape[1] * keys.shape[1]))
    mixed = [
        torch.bmm(
            torch.baddbmm(mask, query[some], keys[some].transpose(1, 2), alpha=scale).softmax(dim=-1), values[some]
        )
        for some in (slice(first, first + heads) for first in range(0, len(query), heads))
    ]
    return torch.cat(mixed)[None]


def _mix_few(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, attn_mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """SDPA of a few queries each, for CPUs, where torch's kernel is made for many and takes up to twice as long.

    In bfloat16 it pays to let the keys be the left side of the product.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if query.dtype == torch.bfloat16:
        scores = torch.matmul(keys, query.transpose(-1, -2)).transpose(-1, -2)
    else:
        scores = torch.matmul(query, keys.transpose(-1, -2))
    # In float32: its elementwise kernels are the faster ones on a CPU, conversions included.
    weights = scores.float().mul_(scale).add_(attn_mask).softmax(dim=-1).to(query.dtype)
    return torch.matmul(weights, values)


def split_runs(written: Sequence[int]) -> list[tuple[int, int]]:
    """Cut the rows into neighbours that attend together, where reading each its own length saves more than a call.

    One long conversation would otherwise make all rows read its length.
    """
    runs: list[tuple[int, int]] = []
    for row in range(len(written)):
        runs.append((row, row + 1))
        while len(runs) > 1 and _is_cheaper_joined(written, runs[-2], runs[-1]):
            runs[-2:] = [(runs[-2][0], runs[-1][1])]
    return runs


def _is_cheaper_joined(written: Sequence[int], left: tuple[int, int], right: tuple[int, int]) -> bool:
    joined, apart = _cost(written, (left[0], right[1])), _cost(written, left) + _cost(written, right)
    return joined <= apart


def _cost(written: Sequence[int], run: tuple[int, int]) -> int:
    return CALL_POSITIONS + (run[1] - run[0]) * max(written[run[0] : run[1]])


def _additive(reach: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(reach.shape, dtype=dtype, device=reach.device).masked_fill_(~reach, -torch.inf)
