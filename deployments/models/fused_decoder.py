"""One pass of a Llama-like decoder over the tokens of many sequences at once; weights and settings are transformers'.

transformers' own layers spend as long in Python and in small kernels as in the matrix products of a decode step. Here
query, key and value are one product, gate and up another, the tokens of all sequences lie in one flat batch, and keys
and values belong to the caller, who is given them layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deployments.models.family import Attend
from deployments.models.packing import DenseLinear, PackedLinear

Product = DenseLinear | PackedLinear

# Attention, rotary positions and MLP of these are alike: no norms of queries and keys, no windows, no soft caps.
FUSED_LAYERS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen2VLDecoderLayer",
        "Qwen2_5_VLDecoderLayer",
    }
)


def can_fuse(decoder: nn.Module) -> bool:
    """Whether all layers of a transformers text model are of a kind that this file computes."""
    layers = getattr(decoder, "layers", ())
    return bool(len(layers)) and all(type(layer).__name__ in FUSED_LAYERS for layer in layers)


@dataclass(frozen=True, slots=True)
class FusedLayer:
    input_norm: nn.Module
    qkv: Product  # D to (heads + 2 * kv_heads) * head_dim
    out: Product  # heads * head_dim to D
    mlp_norm: nn.Module
    gate_up: Product  # D to 2 * intermediate
    act: Callable[[Tensor], Tensor]
    down: Product  # intermediate to D


class FusedDecoder:
    """Reads the weights of `decoder`, whose separate matrices become views of the fused ones: none is there twice."""

    def __init__(self, decoder: Any) -> None:
        attention = decoder.layers[0].self_attn
        self.head_dim: int = attention.head_dim
        self.num_kv_heads: int = attention.k_proj.out_features // self.head_dim
        self.num_heads: int = attention.q_proj.out_features // self.head_dim
        self._decoder = decoder
        self._layers = [_fuse(layer) for layer in decoder.layers]

    def pack(self) -> None:
        """Pack the weights, and take them from `decoder`, which can run no more."""
        self._layers = [_pack(layer) for layer in self._layers]
        for layer in self._decoder.layers:
            for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
                linear.weight.data = linear.weight.data.new_empty(0)

    def run(self, embeddings: Tensor, positions: Tensor, attend: Attend, last: Tensor) -> Tensor:
        """(N, D) embeddings at (N,) or (3, N) positions to the normed states (R, D) of the `last` (R,) ones."""
        cosines, sines = self._waves(embeddings, positions)
        states, turned = embeddings, self.num_heads + self.num_kv_heads
        for index, layer in enumerate(self._layers):
            heads = layer.qkv(layer.input_norm(states)).view(len(states), -1, self.head_dim)
            query_key = heads[:, :turned]
            query_key = query_key * cosines + query_key.roll(self.head_dim // 2, -1) * sines
            mixed = attend(index, query_key[:, : self.num_heads], query_key[:, self.num_heads :], heads[:, turned:])
            states = layer.out.plus(mixed, states)
            gate, up = layer.gate_up(layer.mlp_norm(states)).chunk(2, dim=-1)
            states = layer.down.plus(layer.act(gate) * up, states)
        out: Tensor = self._decoder.norm(states[last])
        return out

    def _waves(self, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each (N, 1, head_dim), for `x * cosines + roll(x) * sines`.

        The model turns (a, b), the halves of a head, into (a, b) * cos + (-b, a) * sin. With the sign in the sines,
        rolling by half a head does for (-b, a), and rounds alike.
        """
        cosines, sines = self._decoder.rotary_emb(embeddings, positions[..., None, :])  # each (1, N, head_dim)
        first, second = sines[0].chunk(2, dim=-1)
        return cosines[0, :, None], torch.cat([-first, second], dim=-1)[:, None]


def _fuse(layer: Any) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return FusedLayer(
        layer.input_layernorm,
        _join([attention.q_proj, attention.k_proj, attention.v_proj]),
        DenseLinear(attention.o_proj.weight, attention.o_proj.bias),
        layer.post_attention_layernorm,
        _join([mlp.gate_proj, mlp.up_proj]),
        mlp.act_fn,
        DenseLinear(mlp.down_proj.weight, mlp.down_proj.bias),
    )


def _pack(layer: FusedLayer) -> FusedLayer:
    products = {name: getattr(layer, name) for name in ("qkv", "out", "gate_up", "down")}
    return replace(layer, **{name: PackedLinear(dense.weight, dense.bias) for name, dense in products.items()})


def _join(linears: Sequence[nn.Linear]) -> DenseLinear:
    """Their weights and biases, one below the other; they themselves keep views of these."""
    biases = [linear.bias for linear in linears]
    assert len({bias is None for bias in biases}) == 1, "either all of them have a bias or none"
    return DenseLinear(_stack([linear.weight for linear in linears]), None if biases[0] is None else _stack(biases))


def _stack(parameters: Sequence[Tensor]) -> Tensor:
    joined = torch.cat([parameter.detach() for parameter in parameters])
    views = torch.split(joined, [len(parameter) for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view
    return joined
