"""A lane: one tower, the thread that owns it, and room for the few pictures that are prepared for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from deployments.config import VisionEncoderConfig
from deployments.metrics import Metrics
from deployments.types import Json
from deployments.vision_encoder.batcher import Batcher
from deployments.vision_encoder.cache import feature_key
from deployments.vision_encoder.line import ONE_PIECE, PassLimits
from deployments.vision_encoder.towers import SharedTower


@dataclass(frozen=True, slots=True)
class Lane:
    shared: SharedTower
    batcher: Batcher
    room: asyncio.Semaphore  # pictures prepared or about to be: pixels are large, so few wait for the tower

    def key(self, tenant: str, image_id: str) -> str:
        """Under which the features that this tower gives of the picture are kept."""
        return feature_key(tenant, image_id, *self.shared.loaded.identity)

    @property
    def name(self) -> str:
        """Equal in all replicas whose features of a picture are equal."""
        return "-".join(self.shared.loaded.identity)

    def describe(self) -> Json:
        loaded = self.shared.loaded
        return {
            "models": list(self.shared.models),
            "tower": loaded.tower.fingerprint,
            "preprocessing": loaded.preprocess.fingerprint,
            "width": loaded.tower.width,
            "dtype": loaded.dtype,
            "device": loaded.device,
            "shares_passes": self.shared.shares_passes,
            "waiting": self.batcher.num_waiting,
            "running": self.batcher.num_running,
            "ms_per_image": round(self.batcher.pace.seconds_per_image * 1000, 3),
            "fault": self.batcher.fault,
        }


def open_lane(
    shared: SharedTower,
    config: VisionEncoderConfig,
    metrics: Metrics,
    tower_thread: Callable[[], AbstractContextManager[None]],
) -> Lane:
    """Starts the tower's thread; `batcher.close()` ends it."""
    limits = PassLimits(config.max_batch_images, config.max_batch_patches) if shared.shares_passes else ONE_PIECE
    batcher = Batcher(shared.run, limits, metrics, tower_thread, shared.split)
    return Lane(shared, batcher, asyncio.Semaphore(2 * config.max_batch_images))
