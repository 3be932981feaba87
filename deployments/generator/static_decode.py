"""Decode steps of fixed shapes, so that a GPU can replay them as captured graphs instead of taking kernel by kernel.

A step has one shape for each pair of buckets, of rows and of attended length. Its inputs are copied into buffers that
stay, everything behind them, embedding to logits, is one replay, and the host waits for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from deployments.generator.kv_cache import SlotCache
from deployments.models.family import LanguageModel, Output

Replay = Callable[[], Output]  # computes once more over the same buffers, into the same outputs
Capture = Callable[[Replay], Replay]

LEAST_LENGTH = 256  # positions; longer buckets are powers of two
logger = logging.getLogger(__name__)


class StaticDecode:
    """Decode steps of slots 0 to B-1. Rows without a sequence write to the scratch position of their slots."""

    def __init__(
        self, language: LanguageModel, cache: SlotCache, position_rows: int, num_slots: int, capture: Capture
    ) -> None:
        self._language = language
        self._cache = cache
        self._capture = capture
        self._buckets = _row_buckets(num_slots)
        self._replays: dict[tuple[int, int], Replay] = {}
        # Token ids, where each row writes, and its position for the model; as one tensor it takes one upload.
        self._inputs = torch.zeros((2 + position_rows, num_slots), dtype=torch.int64, device=language.device)
        is_cuda = language.device.type == "cuda"
        self._staging = torch.zeros(self._inputs.shape, dtype=torch.int64, pin_memory=is_cuda)
        # Passed once the staging buffer may be written again.
        self._uploaded: Any = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def run(self, token_ids: Sequence[int], written: Sequence[int], positions: Sequence[int]) -> Output:
        """One token for each row; the outputs are overwritten by the next call."""
        count = len(token_ids)
        rows = next(bucket for bucket in self._buckets if bucket >= count)
        length = self._length_bucket(max(written) + 1)
        self._upload(token_ids, written, positions)
        replay = self._replays.get((rows, length))
        if replay is None:
            logger.info("capturing decode steps of %d rows over %d positions", rows, length)
            replay = self._replays[rows, length] = self._capture(lambda: self._compute(rows, length))
        output = replay()
        hidden = None if output.hidden is None else output.hidden[:count]
        return Output(output.logits[:count], hidden)

    def _length_bucket(self, length: int) -> int:
        bucket = LEAST_LENGTH
        while bucket < length:
            bucket *= 2
        return min(bucket, self._cache.context_tokens)

    def _upload(self, token_ids: Sequence[int], written: Sequence[int], positions: Sequence[int]) -> None:
        count = len(token_ids)
        if self._uploaded is not None:
            self._uploaded.synchronize()
        self._staging[0].zero_()
        self._staging[1].fill_(self._cache.context_tokens)
        self._staging[2:].zero_()
        self._staging[0, :count] = torch.tensor(token_ids)
        self._staging[1, :count] = torch.tensor(written)
        self._staging[2:, :count] = torch.tensor(positions)
        self._inputs.copy_(self._staging, non_blocking=True)
        if self._uploaded is not None:
            self._uploaded.record()

    def _compute(self, rows: int, length: int) -> Output:
        token_ids, written, positions = self._inputs[0, :rows], self._inputs[1, :rows], self._inputs[2:, :rows]
        embeddings = self._language.embed(token_ids[:, None])[:, 0]
        attention = StaticAttention(self._cache, written, length)
        return self._language.run(embeddings, positions, attention, attention.rows)


class StaticAttention:
    """An `Attend` for one token in each of the slots 0 to B-1; nothing of it depends on values, only on shapes."""

    def __init__(self, cache: SlotCache, written: torch.Tensor, length: int) -> None:
        self.rows = torch.arange(len(written), device=written.device)
        self._layers = cache.layers
        self._written = written
        self._length = length
        reach = torch.arange(length, device=written.device)[None] <= written[:, None]
        mask = torch.zeros(reach.shape, dtype=cache.store.dtype, device=written.device)
        self._mask = mask.masked_fill(~reach, -torch.inf)[:, None, None]  # (B, 1, 1, L)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        keys, values = self._layers[layer]
        count, kv_heads, head_dim = key.shape
        keys[self.rows, :, self._written] = key
        values[self.rows, :, self._written] = value
        mixed = F.scaled_dot_product_attention(
            query.view(count, kv_heads, -1, head_dim),
            keys[:count, :, : self._length],
            values[:count, :, : self._length],
            attn_mask=self._mask,
            scale=scale,
        )
        return mixed.reshape(count, -1)


def capture_on_cuda(compute: Replay) -> Replay:
    """`compute` as a CUDA graph. Must run on the thread and the device that will replay it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # what libraries allocate and choose at their first call must not happen under capture
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = compute()

    def replay() -> Output:
        graph.replay()
        return output

    return replay


def _row_buckets(num_slots: int) -> list[int]:
    """1, 2, 4, then multiples of 8 up to all slots."""
    return sorted({size for size in (1, 2, 4, *range(8, num_slots, 8)) if size < num_slots} | {num_slots})
