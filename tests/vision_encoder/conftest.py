"""Encoders over fake towers; one folder a test, so that a second encoder is the first one restarted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from vision_encoder.bench import MODELS, Bench, FakePreprocessor, FakeTower, OpenBench

from deployments.config import RetinaConfig, VisionEncoderConfig
from deployments.images.stores.memory import MemoryImageStore
from deployments.metrics import Metrics
from deployments.types import ImageStore
from deployments.vision_encoder.cache import open_feature_cache
from deployments.vision_encoder.encoder import Encoder
from deployments.vision_encoder.towers import LoadedTower


@pytest.fixture
async def open_bench(tmp_path: Path) -> AsyncIterator[OpenBench]:
    """open_bench(towers=..., images=..., **settings of vision_encoder) -> Bench; the folder stays for the next one."""
    opened: list[Bench] = []

    def open_one(
        towers: Mapping[str, LoadedTower] | None = None, images: ImageStore | None = None, **settings: object
    ) -> Bench:
        config = RetinaConfig(models=MODELS, vision_encoder=VisionEncoderConfig.model_validate(settings))
        towers = towers or {"a": LoadedTower(FakePreprocessor(), FakeTower(), "float32", "cpu")}
        metrics = Metrics()
        cache = open_feature_cache(config.vision_encoder, tmp_path / "features", metrics)
        images = images or MemoryImageStore(10**9)
        opened.append(Bench(Encoder(towers, cache, images, config, metrics), towers, images, metrics))
        return opened[-1]

    yield open_one
    for bench in opened:
        for loaded in bench.towers.values():
            loaded.tower.gate.set()  # type: ignore[attr-defined]
            loaded.preprocess.gate.set()  # type: ignore[attr-defined]
        await bench.encoder.close()
