"""transformers' causal language models, dressed as the LanguageModel of `family.py`; knows nothing of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from deployments.models.family import Attend, Output, Prompt, Rules
from deployments.models.flat_attention import use_flat_attention
from deployments.models.fused_decoder import FusedDecoder, can_fuse
from deployments.models.module_loading import load_module
from deployments.models.packing import PackedLinear, can_pack, give_back_memory, pack_linears


class LlamaAlone(LlamaForCausalLM):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r".*",)  # the vision half's tensors


class CausalLanguage:
    """LanguageModel over a module that takes `inputs_embeds` and gives logits, such as LlamaForCausalLM."""

    def __init__(self, module: PreTrainedModel, position_rows: int = 1) -> None:
        config = module.config.get_text_config()
        self.module = module
        self._position_rows = position_rows  # 1, or 3 for mrope
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.num_layers: int = config.num_hidden_layers
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.vocab_size: int = config.vocab_size
        self.max_context_tokens: int = config.max_position_embeddings
        self.feature_width: int = config.hidden_size
        self._head: Any = module.get_output_embeddings()
        self._is_packed = False
        self._fused: FusedDecoder | None = None
        if can_fuse(module.get_decoder()):
            self._fused = FusedDecoder(module.get_decoder())
        else:
            use_flat_attention(module)
            # One with four axes is passed on as it is; without one, transformers would make N x N for each pass.
            self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=module.device)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.module.get_input_embeddings()(token_ids)
        return embeddings  # (B, S, D)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def embed_place(self, coordinates: Sequence[float]) -> torch.Tensor:
        raise AssertionError(f"prompts of this family hold no places, but {coordinates}")

    def open_rules(self, prompt: Prompt, max_new_tokens: int) -> Rules | None:
        return None

    def pack(self) -> None:
        if not can_pack(self.device, self.dtype) or self._is_packed:
            return
        self._is_packed = True
        if self._fused is None:
            pack_linears(self.module)
            self._head = self.module.get_output_embeddings()
            give_back_memory()
            return
        self._fused.pack()
        # Where it is tied to the embedding, that one stays as it is.
        self._head = PackedLinear(self._head.weight, self._head.bias)
        self.module.set_output_embeddings(self._head)
        give_back_memory()

    def run(self, embeddings: torch.Tensor, positions: torch.Tensor, attend: Attend, last: torch.Tensor) -> Output:
        assert positions.shape == (self._position_rows, len(embeddings)), positions.shape
        rows = positions[0] if self._position_rows == 1 else positions
        if self._fused is not None:
            states = self._fused.run(embeddings, rows, attend, last)
            return Output(self._head(states).float())
        output = self.module(
            inputs_embeds=embeddings[None],
            position_ids=rows[..., None, :],
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=last,
            attend=attend,
        )
        return Output(output.logits[0].float())

    def forward(self, embeddings: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor) -> Output:
        assert not self._is_packed or self._fused is None, "packed weights are for `run` alone"
        assert positions.shape == (self._position_rows, *embeddings.shape[:2]), positions.shape
        assert mask.dtype == torch.bool, mask.dtype
        assert mask.shape[:3] == (len(embeddings), 1, embeddings.shape[1]), mask.shape
        output = self.module(
            inputs_embeds=embeddings,
            position_ids=positions[0] if self._position_rows == 1 else positions,
            past_key_values=cache,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
        )
        return Output(output.logits[:, -1].float())


def open_llama(
    folder: Path, config: LlamaConfig, key_mapping: Mapping[str, str], device: str, dtype: str
) -> CausalLanguage:
    """`key_mapping` turns the checkpoint's tensor names into LlamaForCausalLM's. Raises CheckpointError."""
    module = load_module(LlamaAlone, folder, config, dtype, key_mapping)
    return CausalLanguage(module.to(torch.device(device)))
