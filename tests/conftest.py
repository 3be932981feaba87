"""What all test folders share: tiny checkpoints, built once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TinyCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """tiny_checkpoint(variant, seed=0) -> folder of a tiny random SmolVLM-type checkpoint in hub layout."""
    from tiny_checkpoints import build_smolvlm  # late: it imports torch

    built: dict[tuple[str, int], Path] = {}

    def build(variant: str = "256m", seed: int = 0) -> Path:
        if (variant, seed) not in built:
            folder = tmp_path_factory.mktemp(f"smolvlm-{variant}-{seed}")
            build_smolvlm(folder, variant=variant, seed=seed)
            built[variant, seed] = folder
        return built[variant, seed]

    return build
