"""Moondream's language part as the generator sees it: text network, region heads, and the rules of each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Cache

from deployments.models.family import Attend, Output, Prompt, Rules
from deployments.models.moondream_config import HEAD_DIM, MoondreamConfig
from deployments.models.moondream_modules import Region, Text
from deployments.models.moondream_rules import open_rules
from deployments.models.moondream_tokens import TokenIds
from deployments.models.packing import pack_linears


class MoondreamLanguage:
    head_dim = HEAD_DIM

    def __init__(self, text: Text, region: Region, tokens: TokenIds, config: MoondreamConfig) -> None:
        self._text = text
        self._region = region
        self._tokens = tokens
        self.device: torch.device = text.wte.device
        self.dtype: torch.dtype = text.wte.dtype
        self.num_layers = config.text.n_layers
        self.num_kv_heads = config.text.n_kv_heads
        self.vocab_size = config.text.vocab_size
        self.max_context_tokens = config.text.max_context
        self.feature_width = config.vision.proj_out_dim

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self._text.embed(token_ids)  # (B, S, D)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        return features

    def embed_place(self, coordinates: Sequence[float]) -> torch.Tensor:
        values = torch.tensor(coordinates, dtype=self.dtype, device=self.device)
        if len(coordinates) == 1:
            return self._region.encode_coordinate(values)
        return self._region.encode_size(values)  # (D,)

    def open_rules(self, prompt: Prompt, max_new_tokens: int) -> Rules:
        return open_rules(self._tokens, self._region, prompt, max_new_tokens)

    def pack(self) -> None:
        pack_linears(self._text)
        pack_linears(self._region)

    def run(self, embeddings: torch.Tensor, positions: torch.Tensor, attend: Attend, last: torch.Tensor) -> Output:
        assert positions.shape == (1, len(embeddings)), positions.shape
        hidden = self._text.run(embeddings, positions[0], attend)[last]  # (R, D)
        return Output(self._text.logits(hidden).float(), hidden)

    def forward(self, embeddings: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor) -> Output:
        assert positions.shape == (1, *embeddings.shape[:2]), positions.shape
        assert mask.dtype == torch.bool, mask.dtype
        assert mask.shape[:3] == (len(embeddings), 1, embeddings.shape[1]), mask.shape
        hidden = self._text(embeddings, positions[0], mask, cache)[:, -1]  # (B, D)
        return Output(self._text.logits(hidden).float(), hidden)
