"""Reads what a checkpoint's generation_config.json says of stopping and of sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import CheckpointError
from deployments.models.weights import read_json

NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    stop_token_ids: frozenset[int]
    repetition_penalty: float  # 1 is none


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """config.json names a stop token as well, and in SmolVLM it is the wrong one. Raises CheckpointError."""
    content = read_json(folder, NAME)
    stop = content.get("eos_token_id")
    named = stop if isinstance(stop, list) else [stop]
    stop_ids = [token_id for token_id in named if isinstance(token_id, int)]
    if not stop_ids or len(stop_ids) < len(named):
        raise CheckpointError(f"{folder / NAME} should name stop tokens in eos_token_id, not {stop!r}")
    return GenerationDefaults(frozenset(stop_ids), _read_penalty(folder, content.get("repetition_penalty")))


def _read_penalty(folder: Path, penalty: object) -> float:
    if penalty is None:
        return 1.0
    if not isinstance(penalty, int | float) or not math.isfinite(penalty) or penalty <= 0:
        raise CheckpointError(f"{folder / NAME} should have a repetition_penalty above 0, not {penalty!r}")
    return float(penalty)
