"""One running service for the folder: configs/local.yaml plus one more model, whose answers are long."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from service import ROOT, Service, free_port, local_config

ENDLESS = "endless"  # a tiny random checkpoint: it says nonsense and does not stop before max_new_tokens


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    checkpoint = build_endless(tiny_checkpoint, folder)

    def add_endless(args: dict[str, Any]) -> None:
        own = {"replica": {"num_cpus": 0.1}, "max_new_tokens": 4000, "max_context_tokens": 8000, "num_slots": 4}
        args["models"].append({"name": ENDLESS, "family": "smolvlm", "checkpoint": str(checkpoint), "generator": own})

    port = free_port()
    service = Service(local_config(folder, port, add_endless), port, folder / "serve.log")
    try:
        service.start()
        yield service
    finally:
        service.stop()


def build_endless(tiny_checkpoint: Any, folder: Path) -> Path:
    checkpoint = shutil.copytree(tiny_checkpoint("256m", seed=3), folder / "endless")
    _never_stop(checkpoint)
    return checkpoint


def _never_stop(checkpoint: Path) -> None:
    """Give the stop token a logit of zero, which is never the largest of hundreds of random ones."""
    from safetensors.torch import load_file, save_file

    stop = json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"]
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][stop] = 0
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """Conversations about the pictures of demo/images with the demo checkpoint's exact answers."""
    conversations: list[dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "smolvlm.json").read_text())
    return conversations
