"""A vision tower's layers in bfloat16 on a CPU, in fewer and larger steps than the models' own modules take.

Query, key and value are one product; bias, activation and residual are applied while a product's result is still in the
processor's cache (oneDNN's post-ops); attention is two products and a softmax over as many heads as the cache holds
scores of, which takes half the time of torch's own kernel here. It is the same arithmetic, rounded at other places.
Each tile goes through alone, so that its features never hang on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.activations import ACT2FN

# Part of the fingerprint of towers that run by this code: raise it when features come out otherwise.
FUSED_VERSION = 1
# oneDNN's names, by transformers' name of the activation; others come as a step of their own.
FUSED_ACTIVATIONS = {"gelu_pytorch_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none")}
MAX_SCORES = 2**21  # held at a time: 4 MB; measured at 256 to 2048 positions, where half or twice as many are no faster
ATTENTION_NAME = "retina_cpu_vision"


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this process's CPU and torch have the products in bfloat16 that this file is made of."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype != torch.bfloat16 or not has_onednn:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def name_fused(device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    """What a tower's fingerprint says of this code: nothing where it is not used."""
    return {"fused": FUSED_VERSION} if can_fuse(device, dtype) else {}


# --------------------------------------------------------------------------------- layers


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer of a tower: norm, attention, norm, two products with an activation between them."""

    num_heads: int
    activation: str  # transformers' name
    norm1: nn.LayerNorm
    qkv_weight: Tensor  # (3 * D, D)
    qkv_bias: Tensor  # (3 * D,)
    out: nn.Linear
    norm2: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear

    def __call__(self, states: Tensor) -> Tensor:
        """(B, P, D) to (B, P, D)."""
        tiles = [self._run(tile) for tile in states]
        return torch.stack(tiles) if len(tiles) > 1 else tiles[0][None]

    def _run(self, states: Tensor) -> Tensor:
        """(P, D) to (P, D)."""
        qkv = F.linear(self.norm1(states), self.qkv_weight, self.qkv_bias)
        states = _add_linear(states, attend(qkv, self.num_heads), self.out)
        return _add_linear(states, self._widen(self.norm2(states)), self.fc2)

    def _widen(self, states: Tensor) -> Tensor:
        """(P, D) to (P, inner D), activated."""
        if self.activation not in FUSED_ACTIVATIONS:
            activated: Tensor = ACT2FN[self.activation](self.fc1(states))
            return activated
        kind, algorithm = FUSED_ACTIVATIONS[self.activation]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.fc1.weight, self.fc1.bias, kind, [], algorithm)
        return out


def _add_linear(states: Tensor, inner: Tensor, linear: nn.Linear) -> Tensor:
    """`states` and the linear layer's result on `inner`, added before they are rounded."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(inner, states, linear.weight, linear.bias, "add")
    return out


def fuse_layers(layers: Iterable[Any], num_heads: int, activation: str) -> list[FusedLayer]:
    """Of transformers' SigLIP or CLIP layers. Their query, key and value matrices become views of the common one: no
    weight is twice in memory, and the layers themselves still work."""
    return [_fuse(layer, num_heads, activation) for layer in layers]


def _fuse(layer: Any, num_heads: int, activation: str) -> FusedLayer:
    attention = layer.self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    for part, rows, numbers in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
        part.weight = nn.Parameter(rows, requires_grad=False)
        part.bias = nn.Parameter(numbers, requires_grad=False)
    norms, mlp = (layer.layer_norm1, layer.layer_norm2), layer.mlp
    return FusedLayer(num_heads, activation, norms[0], weight, bias, attention.out_proj, norms[1], mlp.fc1, mlp.fc2)


# --------------------------------------------------------------------------------- attention


def attend(qkv: Tensor, num_heads: int) -> Tensor:
    """(P, 3 * D) queries, keys and values of one tile to (P, D): every position sees every other."""
    parts = qkv.view(len(qkv), 3, num_heads, -1).permute(1, 2, 0, 3).contiguous()  # (3, heads, P, D / heads)
    return mix(*parts).flatten(1)


def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(heads, P, width) each to (P, heads, width)."""
    num_heads, positions, width = q.shape
    mixed = q.new_empty(positions, num_heads, width)
    rows = max(1, min(positions, MAX_SCORES // positions))
    heads = max(1, MAX_SCORES // (positions * rows))
    for some in (slice(first, first + heads) for first in range(0, num_heads, heads)):
        for part in (slice(first, first + rows) for first in range(0, positions, rows)):
            mixed[part, some] = _mix(q[some, part], k[some], v[some]).transpose(0, 1)
    return mixed


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(heads, rows, width) queries over (heads, P, width) keys and values."""
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(torch.softmax(scores, -1), v)


def _attention_of_transformers(
    module: nn.Module,
    query: Tensor,  # (1, heads, P, width), as key and value
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: object,
) -> tuple[Tensor, None]:
    assert attention_mask is None, "every position sees every other"
    assert len(query) == 1, query.shape
    return mix(query[0], key[0], value[0])[None], None


AttentionInterface.register(ATTENTION_NAME, _attention_of_transformers)
