"""The Llama language part of a vision-language checkpoint, loaded alone; knows nothing of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import Cache, LlamaConfig, LlamaForCausalLM

from deployments.models.weights import load_module


class LlamaAlone(LlamaForCausalLM):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r".*",)  # the vision half's tensors


class LlamaLanguage:
    """LanguageModel over transformers' Llama. Positions have one row."""

    def __init__(self, module: LlamaForCausalLM) -> None:
        config: LlamaConfig = module.config
        self._module = module
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.vocab_size: int = config.vocab_size
        self.max_context_tokens: int = config.max_position_embeddings

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self._module.get_input_embeddings()(token_ids)
        return embeddings  # (B, S, D)

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor
    ) -> torch.Tensor:
        assert positions.shape == (1, *embeddings.shape[:2]), positions.shape
        assert mask.dtype == torch.bool, mask.dtype
        assert mask.shape[:3] == (len(embeddings), 1, embeddings.shape[1]), mask.shape
        output = self._module(
            inputs_embeds=embeddings,
            position_ids=positions[0],
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits  # (B, vocab_size)


def open_llama(
    folder: Path, config: LlamaConfig, key_mapping: Mapping[str, str], device: str, dtype: str
) -> LlamaLanguage:
    """`key_mapping` turns the checkpoint's tensor names into LlamaForCausalLM's. Raises CheckpointError."""
    module = load_module(LlamaAlone, folder, config, dtype, key_mapping)
    return LlamaLanguage(module.to(torch.device(device)))
