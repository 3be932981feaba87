"""The vision encoder as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from deployments.config import RetinaConfig
from deployments.errors import PartUnavailable
from deployments.images.stores.open import open_image_store
from deployments.logs import configure_logging
from deployments.types import EncodeRequest, ImageFeatures, Json
from deployments.vision_encoder.open import open_vision_encoder


class VisionEncoderReplica:
    async def __init__(self, config: RetinaConfig) -> None:  # type: ignore[misc]
        """Serve awaits this. In a thread: the loop that waits here is the one by which Serve reaches the replica."""
        configure_logging()
        images = open_image_store(config.images, Path(config.data_dir))
        self._encoder = await asyncio.to_thread(open_vision_encoder, config, images)

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        return await self._encoder.encode(request)

    async def statistics(self) -> Json:
        return {"pid": os.getpid(), **await self._encoder.statistics()}

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: a tower that failed for good answers nobody."""
        if self._encoder.closing is not None:
            raise PartUnavailable(self._encoder.closing)

    async def __del__(self) -> None:
        """Serve awaits this when it takes the replica down."""
        await self._encoder.close()
