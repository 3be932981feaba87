"""A configured model becomes an engine: device, dtype and threads as the configuration says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generator.letters import LetterEncoder, ask, read

from deployments.config import RetinaConfig
from deployments.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.torch


@pytest.fixture
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(checkpoint: Path, **generator: Any) -> RetinaConfig:
    model = {"name": "tiny", "family": "smolvlm", "checkpoint": str(checkpoint), "generator": generator}
    return RetinaConfig.model_validate({"models": [model], "device": "cpu"})


@pytest.mark.usefixtures("threads")
def test_an_engine_from_a_configuration(tiny_checkpoint: Any) -> None:
    import torch

    from deployments.generator.engine import open_engine

    settings = config(tiny_checkpoint(), num_threads=1, num_slots=3, dtype="bfloat16", max_context_tokens=256)
    engine = open_engine(settings, "tiny", LetterEncoder())
    try:
        answer = asyncio.run(read(engine.stream(ask("Hello", max_new_tokens=4))))
        shown = asyncio.run(engine.statistics())
        assert answer.last.usage is not None
        about = {"model": "tiny", "dtype": "bfloat16", "device": "cpu", "num_slots": 3, "context_tokens": 256}
        assert about.items() <= shown.items()
        assert torch.get_num_threads() == 1
        assert engine.wait_idle(5)
        assert engine.check() == ()
    finally:
        engine.close()


@pytest.mark.usefixtures("threads")
def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    from deployments.generator.engine import open_engine

    with pytest.raises(CheckpointError, match="nowhere"):
        open_engine(config(tmp_path / "nowhere"), "tiny", LetterEncoder())


@pytest.mark.usefixtures("threads")
def test_a_device_that_is_not_there_is_refused(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from deployments.generator.loading import load_model

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wanting = config(tiny_checkpoint()).model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="device is cuda"):
        load_model(wanting, "tiny")
