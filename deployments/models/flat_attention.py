"""Lets any of transformers' causal models run over flat tokens: its attention becomes the caller's.

For models that `fused_decoder.py` does not know. The model's own layers compute; where they would attend, transformers
calls the function that is registered here, and that one calls `attend`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from deployments.models.family import Attend

NAME = "retina_flat"


def use_flat_attention(module: PreTrainedModel) -> None:
    """From now on `module(..., attend=...)` attends by `attend`; without it, by transformers' SDPA as before."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    module.set_attn_implementation(NAME)


def _attention(
    module: nn.Module,
    query: torch.Tensor,  # (1, heads, N, head_dim)
    key: torch.Tensor,  # (1, kv_heads, N, head_dim)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    attend: Attend | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    if attend is None:
        mixed, weights = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return mixed, weights
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # each (N, its heads, head_dim)
    mixed = attend(cast(int, module.layer_idx), q, k, v, scaling)
    return mixed.view(1, len(mixed), query.shape[1], -1), None
