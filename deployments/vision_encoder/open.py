"""Open the vision encoder that a config asks for: towers, or the fake when no model needs one."""

from __future__ import annotations

from typing import Protocol

from deployments.config import RetinaConfig
from deployments.types import ImageStore, VisionEncoder


class OpenVisionEncoder(VisionEncoder, Protocol):
    @property
    def closing(self) -> str | None:
        """Why no new tower work is accepted any more; None while all is well."""
        ...

    async def close(self) -> None:
        """Finish what is being written and end the threads."""
        ...


def open_vision_encoder(config: RetinaConfig, images: ImageStore) -> OpenVisionEncoder:
    """Blocks while towers load. Raises CheckpointError."""
    if all(model.family == "fake" for model in config.models):
        from deployments.fakes import FakeVisionEncoder

        return FakeVisionEncoder()
    from deployments.vision_encoder.encoder import open_encoder

    return open_encoder(config, images)
