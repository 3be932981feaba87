"""Loads the two halves of a configured model that answering needs: prompt format and language part."""

from __future__ import annotations

import logging

from deployments.config import RetinaConfig
from deployments.models.family import LanguageModel, PromptFormat

logger = logging.getLogger(__name__)


def load_model(config: RetinaConfig, model: str) -> tuple[LanguageModel, PromptFormat]:
    """Blocks while weights load; sets the number of torch's threads in this process to 1.

    Raises CheckpointError, ConfigError.
    """
    import torch

    from deployments.models.placement import resolve_device, resolve_dtype
    from deployments.models.registry import open_family
    from deployments.models.sources import checkpoint_folder, prompt_options

    spec, generator = config.model(model), config.generator_of(model)
    torch.set_num_threads(1)  # while loading; the engine's thread, which alone computes, has its own number
    device = resolve_device(config.device)
    dtype = resolve_dtype(generator.dtype, device)
    family = open_family(spec.family)
    folder = checkpoint_folder(spec)
    prompts = family.open_prompt_format(folder, prompt_options(spec))
    language = family.open_language(folder, device, dtype)
    if generator.mode == "batch":
        language.pack()
    logger.info("%s: language model of %s on %s in %s", model, folder, device, dtype)
    return language, prompts
