"""Loads the two halves of a configured model that answering needs: prompt format and language part."""

from __future__ import annotations

import logging

from deployments.config import RetinaConfig
from deployments.models.family import LanguageModel, PromptFormat

logger = logging.getLogger(__name__)


def load_model(config: RetinaConfig, model: str) -> tuple[LanguageModel, PromptFormat]:
    """Blocks while weights load; sets the number of torch's threads in this process. Raises CheckpointError."""
    import torch

    from deployments.models.registry import open_family
    from deployments.models.weights import locate_checkpoint

    spec, generator = config.model(model), config.generator_of(model)
    # Each replica is a process that shares its cores with others: more threads than its share make all of them slow.
    torch.set_num_threads(generator.num_threads)
    device = resolve_device(config.device)
    dtype = resolve_dtype(generator.dtype, device)
    family = open_family(spec.family)
    folder = locate_checkpoint(spec.checkpoint, spec.revision)
    prompts = family.open_prompt_format(folder)
    language = family.open_language(folder, device, dtype)
    logger.info("%s: language model of %s on %s in %s", model, folder, device, dtype)
    return language, prompts


def resolve_device(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 where a GPU computes it natively, and float32 on a CPU.

    A CPU with bfloat16 instructions would be faster in bfloat16, but its answers then differ from transformers' in
    float32 now and then; who wants that says so in the configuration.
    """
    import torch

    if dtype != "auto":
        return dtype
    if device != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
