"""Builds the runner that a configuration's `mode` names, with as much KV cache as its budget allows."""

from __future__ import annotations

import logging

from deployments.config import GeneratorConfig
from deployments.errors import ConfigError
from deployments.generator.kv_budget import plan_kv
from deployments.generator.step import Runner
from deployments.models.family import LanguageModel

logger = logging.getLogger(__name__)


def build_runner(language: LanguageModel, config: GeneratorConfig, context_tokens: int) -> Runner:
    """Allocates the KV cache. Torch and transformers are imported here, and not before.

    Raises ConfigError when the KV budget holds not even one slot.
    """
    from deployments.generator.runner import BatchRunner
    from deployments.generator.simple import SimpleRunner
    from deployments.generator.static_decode import capture_on_cuda

    if config.mode == "simple":
        return SimpleRunner(language)
    token_bytes = 2 * language.num_layers * language.num_kv_heads * language.head_dim * language.dtype.itemsize
    plan = plan_kv(
        config.num_slots, context_tokens, token_bytes, config.prefix_cache_bytes, _budget_bytes(language, config)
    )
    if plan.num_slots < config.num_slots:
        logger.warning("the KV budget holds %d of %d slots", plan.num_slots, config.num_slots)
    is_captured = config.cuda_graphs and language.device.type == "cuda"
    return BatchRunner(
        language,
        plan.num_slots,
        context_tokens,
        config.prefill_chunk_tokens,
        plan.prefix_bytes,
        capture_on_cuda if is_captured else None,
    )


def _budget_bytes(language: LanguageModel, config: GeneratorConfig) -> int | None:
    """None: as much as slots and memory of beginnings take."""
    if config.kv_cache_share is None:
        return config.kv_cache_bytes
    import torch

    if language.device.type != "cuda":
        raise ConfigError(
            f"generator.kv_cache_share is of a GPU's free memory, and this runs on {language.device}: set "
            "generator.kv_cache_bytes instead",
            "generator.kv_cache_share",
        )
    free_bytes, _ = torch.cuda.mem_get_info(language.device)
    share_bytes = int(free_bytes * config.kv_cache_share)
    return share_bytes if config.kv_cache_bytes is None else min(share_bytes, config.kv_cache_bytes)
