"""LLaVA's half of the generator: a projector and, behind it, one of three language models. Knows no pictures' sizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    LlavaConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector, LlavaPreTrainedModel

from deployments.errors import CheckpointError
from deployments.models.causal import CausalLanguage
from deployments.models.module_loading import load_module

LANGUAGES: Mapping[str, type[PreTrainedModel]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
}
# Tensors are `language_model.model.*` and `language_model.lm_head.weight` on the hub, and `model.language_model.*` and
# `lm_head.weight` where the names inside transformers were written out.
TO_LANGUAGE = {r"^language_model\.": "", r"^model\.language_model\.": "model."}
TO_PROJECTOR = {r"^model\.multi_modal_projector\.": "multi_modal_projector."}


class LlavaLanguage(CausalLanguage):
    """A language model that is given what a tower saw, and brings it to its own width by a projector.

    Both modules come in eval mode and frozen; who trains one of them sets `requires_grad_` itself.
    """

    def __init__(self, projector: LlavaMultiModalProjector, module: PreTrainedModel) -> None:
        super().__init__(module)
        self.projector: nn.Module = projector  # (..., feature_width) to (..., D); linear_1, act, linear_2
        self.feature_width: int = projector.linear_1.in_features
        window = getattr(module.config, "sliding_window", None)
        if window is not None:  # up to here attention through a window and full attention are the same
            self.max_context_tokens = min(self.max_context_tokens, window)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        assert features.shape[1:] == (self.feature_width,), features.shape
        projected: torch.Tensor = self.projector(features.to(self.device, self.dtype))
        return projected  # (image_tokens, D)


def open_llava_language(folder: Path, config: LlavaConfig, device: str, dtype: str) -> LlavaLanguage:
    """Reads neither the tower's tensors nor, for the language model, the projector's. Raises CheckpointError."""
    text = config.text_config
    _require_known(folder, text)
    # Whether head and embedding are one matrix may be said outside text_config.
    text.tie_word_embeddings = config.tie_word_embeddings
    half = load_module(_ProjectorAlone, folder, config, dtype, TO_PROJECTOR).to(torch.device(device))
    module = load_module(_language_alone(text.model_type), folder, text, dtype, TO_LANGUAGE).to(torch.device(device))
    return LlavaLanguage(half.multi_modal_projector, module)


def _require_known(folder: Path, text: PreTrainedConfig) -> None:
    if text.model_type not in LANGUAGES:
        raise CheckpointError(
            f"checkpoint {folder} has a language part of type {text.model_type!r}; there is {', '.join(LANGUAGES)}"
        )
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):  # transformers turns them by the longest request it has seen
        raise CheckpointError(
            f"checkpoint {folder} has positions of type {rope!r}, which change with a prompt's length"
        )


class _ProjectorAlone(LlavaPreTrainedModel):  # type: ignore[misc]
    _keys_to_ignore_on_load_unexpected = (r".*",)  # tower and language model

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.post_init()


@cache
def _language_alone(model_type: str) -> type[PreTrainedModel]:
    known = LANGUAGES[model_type]
    return type(f"{known.__name__}Alone", (known,), {"_keys_to_ignore_on_load_unexpected": (r".*",)})
