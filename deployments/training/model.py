"""The projector being trained in front of its frozen language model: the loss of a batch, and nothing of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from deployments.models.llava_language import LlavaLanguage
from deployments.training.batches import IGNORED, Batch
from deployments.vision_encoder.cache import Features

MAX_PLAIN_TOKENS = 160  # of a row; measured on one core, 192 wide: half the time at 40 tokens, the same at 200


class ProjectorModel:
    """`initial` are the projector's weights as the checkpoint has them, not rounded to the language model's dtype."""

    def __init__(self, language: LlavaLanguage, initial: Mapping[str, torch.Tensor]) -> None:
        self._language = language
        # float32 whatever the language model's dtype: AdamW's small steps vanish in bfloat16.
        self.projector: nn.Module = deepcopy(language.projector).float()
        self.projector.load_state_dict(dict(initial))
        self.projector.requires_grad_(requires_grad=True)

    @property
    def device(self) -> torch.device:
        return self._language.device

    @property
    def feature_width(self) -> int:
        return self._language.feature_width

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU, float32."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.projector.state_dict().items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.projector.load_state_dict(dict(weights))

    def loss(self, batch: Batch, features: Sequence[Features]) -> torch.Tensor:
        """Cross-entropy summed over the batch's targets; `features` are those of its pictures, row by row."""
        logits = self._logits(batch, features)
        targets = torch.from_numpy(batch.targets).to(self.device)  # (B, K)
        return functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )

    def _logits(self, batch: Batch, features: Sequence[Features]) -> torch.Tensor:
        """(B, K, vocab_size) at the batch's columns."""
        columns = torch.from_numpy(batch.columns).to(self.device)
        embeddings = self._embed(batch, features)
        with self._attention(embeddings.shape[1]):
            output = self._language.module(inputs_embeds=embeddings, use_cache=False, logits_to_keep=columns)
        logits: torch.Tensor = output.logits
        return logits

    def _attention(self, length: int) -> AbstractContextManager[None]:
        """On a CPU, fused attention in bfloat16 is slow backwards; plain products pay until rows are long."""
        is_slow = self.device.type == "cpu" and self._language.dtype == torch.bfloat16
        return sdpa_kernel(SDPBackend.MATH) if is_slow and length <= MAX_PLAIN_TOKENS else nullcontext()

    def _embed(self, batch: Batch, features: Sequence[Features]) -> torch.Tensor:
        """(B, S, D) embeddings of the tokens, with the projected pictures in their places."""
        embeddings = self._language.embed(torch.from_numpy(batch.token_ids).to(self.device))
        places = torch.from_numpy(batch.image_places).to(self.device)
        projected: torch.Tensor = self.projector(stack(features).to(self.device, torch.float32))  # (B, image_tokens, D)
        flat = embeddings.flatten(0, 1).index_copy(0, places, projected.flatten(0, 1).to(embeddings.dtype))
        return flat.view_as(embeddings)


def stack(features: Sequence[Features]) -> torch.Tensor:
    """(B, image_tokens, feature_width) on the CPU, in the dtype they were kept in."""
    array = np.stack([item.array for item in features])
    if features[0].dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
