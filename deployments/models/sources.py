"""From a model's configuration to the folders it is read from; downloads what the hub cache lacks."""

from __future__ import annotations

from pathlib import Path

from deployments.config import ModelConfig
from deployments.models.family import Options
from deployments.models.weights import locate_checkpoint


def checkpoint_folder(spec: ModelConfig) -> Path:
    """Blocks while downloading. Raises CheckpointError."""
    return locate_checkpoint(spec.checkpoint, spec.revision)


def picture_options(spec: ModelConfig) -> Options:
    """What preprocessing needs to know; fetches nothing."""
    return Options(max_image_tokens=spec.max_image_tokens)


def prompt_options(spec: ModelConfig) -> Options:
    """What a prompt format needs to know. Blocks while downloading a tokenizer. Raises CheckpointError."""
    tokenizer = locate_checkpoint(spec.tokenizer, spec.tokenizer_revision) if spec.tokenizer else None
    return Options(max_image_tokens=spec.max_image_tokens, tokenizer=tokenizer)
