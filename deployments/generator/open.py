"""Open the generator of one configured model: an engine over its language model, or the fake."""

from __future__ import annotations

from deployments.config import RetinaConfig
from deployments.types import Generator, VisionEncoder

FAKE_WORD_DELAY_S = 0.03  # so that one sees the fake stream


def open_generator(config: RetinaConfig, model: str, encoder: VisionEncoder) -> Generator:
    """Blocks while weights load. Raises CheckpointError."""
    if config.model(model).family == "fake":
        from deployments.fakes import FakeGenerator

        return FakeGenerator(model, encoder, word_delay_s=FAKE_WORD_DELAY_S)
    from deployments.generator.engine import open_engine

    return open_engine(config, model, encoder)
