"""Builds the runner that a configuration's `mode` names."""

from __future__ import annotations

from deployments.config import GeneratorConfig
from deployments.generator.step import Runner
from deployments.models.family import LanguageModel


def build_runner(language: LanguageModel, config: GeneratorConfig, context_tokens: int) -> Runner:
    """Allocates the KV cache. Torch and transformers are imported here, and not before."""
    from deployments.generator.runner import BatchRunner
    from deployments.generator.simple import SimpleRunner

    if config.mode == "simple":
        return SimpleRunner(language)
    return BatchRunner(language, config.num_slots, context_tokens, config.prefill_chunk_tokens)
