"""What this machine could do at best, measured: memory bandwidth, matrix rate, and the products of one decode step.

A decode step cannot be faster than its matrix products, done one after the other by the fastest way there is, and the
reading of the keys and values it attends to; everything else a step does counts as lost.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
READ_BYTES = 1 << 29  # far more than any cache holds
SIDE = 2048  # of square matrices
MEASURE_FOR_S = 0.6
MIN_RUNS, MAX_RUNS = 8, 400


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """Sizes of a language part made of llama's layers, which are those of mistral and qwen2, too."""

    width: int
    inner_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool  # head and embedding are one matrix

    @property
    def layer_products(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each product of a layer; those with a common input as one, which is never slower."""
        heads = self.num_heads * self.head_dim
        return (
            (self.width, heads + 2 * self.num_kv_heads * self.head_dim),
            (heads, self.width),
            (self.width, 2 * self.inner_width),
            (self.inner_width, self.width),
        )

    @property
    def num_weights(self) -> int:
        """Of all products of a step: every layer's, and the head's."""
        per_layer = sum(rows * columns for rows, columns in self.layer_products)
        return self.num_layers * per_layer + self.width * self.vocab_size

    def num_bytes(self, bytes_per_value: int) -> int:
        """Of all weights; norms and biases are too small to count."""
        embedding = 0 if self.is_tied else self.width * self.vocab_size
        return (self.num_weights + embedding) * bytes_per_value

    def kv_bytes(self, num_positions: int, bytes_per_value: int) -> int:
        """Keys and values of so many tokens."""
        return num_positions * 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value


def read_shape(checkpoint: Path) -> LanguageShape:
    """Raises ValueError for checkpoints whose layers are not llama's."""
    config = json.loads((checkpoint / "config.json").read_text())
    is_tied = bool(config.get("tie_word_embeddings", False))  # of the whole model: what is said inside does not count
    config = {**config, **config.get("text_config", {})}
    try:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        return LanguageShape(
            width=width,
            inner_width=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            vocab_size=config["vocab_size"],
            is_tied=is_tied,
        )
    except KeyError as error:
        raise ValueError(f"{checkpoint / 'config.json'} does not give {error}: these are not llama's layers") from error


@dataclass(frozen=True, slots=True)
class Ceilings:
    read_gb_per_s: float
    matrix_gflop_per_s: float
    products_ms: dict[int, float]  # of one decode step, by batch, in the fastest way there is
    plain_products_ms: dict[int, float]  # the same by `torch.nn.functional.linear`


def measure_ceilings(shape: LanguageShape, batches: Sequence[int], dtype: torch.dtype, device: str) -> Ceilings:
    """With as many threads as torch is set to."""
    import torch

    with torch.inference_mode():
        products = _Products(shape, dtype, device)
        plain = {batch: round(products.plain_ms(batch), 3) for batch in batches}
        return Ceilings(
            read_gb_per_s=round(_read_bandwidth(device), 1),
            matrix_gflop_per_s=round(_matrix_rate(dtype, device), 1),
            products_ms={batch: min(plain[batch], round(products.packed_ms(batch), 3)) for batch in batches},
            plain_products_ms=plain,
        )


def step_ceiling_ms(
    shape: LanguageShape, ceilings: Ceilings, batch: int, positions: int, bytes_per_value: int
) -> float:
    """Of one decode step of `batch` sequences that hold `positions` tokens each."""
    kv_bytes = shape.kv_bytes(batch * positions, bytes_per_value)
    return ceilings.products_ms[batch] + kv_bytes / ceilings.read_gb_per_s / 1e6


def _read_bandwidth(device: str) -> float:
    """GB/s of reading float32 once."""
    import torch

    block = torch.ones(READ_BYTES // 4, device=device)
    return READ_BYTES / median_ms(block.sum, device) / 1e6


def _matrix_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of large square products."""
    import torch

    left, right = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    return 2 * SIDE**3 / median_ms(lambda: left @ right, device) / 1e6


class _Products:
    """All weights of a step, each product's its own, as in a model: one that is used again would come from a cache."""

    def __init__(self, shape: LanguageShape, dtype: torch.dtype, device: str) -> None:
        import torch

        self._dtype, self._device = dtype, device
        sizes = [size for _ in range(shape.num_layers) for size in shape.layer_products]
        sizes.append((shape.width, shape.vocab_size))
        self._weights = [torch.randn(columns, rows, dtype=dtype, device=device) for rows, columns in sizes]

    def plain_ms(self, batch: int) -> float:
        from torch.nn.functional import linear

        pairs = self._pairs(batch, self._weights)
        return median_ms(lambda: [linear(left, weight) for left, weight in pairs], self._device)

    def packed_ms(self, batch: int) -> float:
        """Infinite where weights cannot be packed."""
        if not self._packed:
            return math.inf
        pairs = self._pairs(batch, self._packed)
        return median_ms(lambda: [_packed_linear(left, weight) for left, weight in pairs], self._device)

    def _pairs(self, batch: int, weights: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each weight with its input; products of equal inputs may share one."""
        import torch

        sizes = [weight.shape[1] for weight in self._weights]  # packed ones need not say
        inputs = {size: torch.randn(batch, size, dtype=self._dtype, device=self._device) for size in set(sizes)}
        return [(inputs[size], weight) for size, weight in zip(sizes, weights, strict=True)]

    @cached_property
    def _packed(self) -> list[torch.Tensor]:
        """The weights as oneDNN lays them out; none where that cannot be done."""
        import torch

        can_pack = (
            self._device == "cpu"
            and self._dtype in (torch.float32, torch.bfloat16)
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and (self._dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        if not can_pack:
            return []
        return [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in self._weights]


def _packed_linear(left: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    import torch

    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")
    return product


def median_ms(function: Callable[[], object], device: str) -> float:
    """Of as many runs as fit into half a second and some; on CUDA as one captured graph, without the host's share."""
    run = _captured(function) if device == "cuda" else function
    times: list[float] = []
    run()
    began = time.perf_counter()
    while len(times) < MIN_RUNS or (time.perf_counter() - began < MEASURE_FOR_S and len(times) < MAX_RUNS):
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return sorted(times)[len(times) // 2] * 1000


def _captured(function: Callable[[], object]) -> Callable[[], object]:
    import torch

    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()  # its memory belongs to the graph as long as it lives

    def replay() -> object:
        graph.replay()
        torch.cuda.synchronize()
        return kept

    return replay
