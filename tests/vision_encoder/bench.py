"""A tower and a preprocessor without torch, which tests can stop, count and poison, and an encoder over them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from deployments.config import RetinaConfig, parse_config
from deployments.images.check import check_image
from deployments.metrics import Metrics
from deployments.models.family import Pixels
from deployments.types import EncodeRequest, ImageStore, StoredImage
from deployments.vision_encoder.encoder import Encoder
from deployments.vision_encoder.towers import LoadedTower

WIDTH = 3
PATIENCE_S = 20.0  # for what must happen; a test that waits that long has failed


@dataclass
class FakePreprocessor:
    """One row of features for each row of the picture: its mean colour."""

    fingerprint: str = "preprocessing"
    num_calls: int = 0
    poison: set[tuple[int, int]] = field(default_factory=set)  # sizes that make it raise
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, picture: Image.Image) -> Pixels:
        self.num_calls += 1
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if picture.size in self.poison:
            raise IndexError("the secret internals of a library")
        rows = np.asarray(picture, dtype=np.float32).mean(axis=1)
        return Pixels({"rows": rows}, cost=len(rows), num_tokens=len(rows))


@dataclass
class FakeTower:
    """Gives back what the preprocessor made, plus `offset`."""

    fingerprint: str = "tower"
    offset: float = 0.0
    width: int = WIDTH
    shares_passes: bool = True
    poison: set[float] = field(default_factory=set)  # red values that make it raise
    error: type[Exception] = RuntimeError
    batches: list[int] = field(default_factory=list)  # sizes, also of those that failed
    threads: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    def encode(self, batch: Sequence[Pixels]) -> list[np.ndarray]:
        self.batches.append(len(batch))
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if any(pixels.tensors["rows"][0, 0] in self.poison for pixels in batch):
            raise self.error("the secret internals of a tower")
        return [pixels.tensors["rows"] + self.offset for pixels in batch]


def loaded(preprocessing: str = "p", tower: str = "t", dtype: str = "float32", offset: float = 0.0) -> LoadedTower:
    return LoadedTower(FakePreprocessor(preprocessing), FakeTower(tower, offset), dtype, "cpu")  # type: ignore[arg-type]


async def until(semaphore: threading.Semaphore) -> None:
    """Wait for the next release, off the event loop."""
    assert await asyncio.to_thread(semaphore.acquire, True, PATIENCE_S)


async def until_true(condition: Callable[[], bool]) -> None:
    """Let the event loop run until something it does has happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - it is plain state, nobody signals it
            await asyncio.sleep(0)


def png(red: int, size: tuple[int, int] = (4, 3)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (red, 1, 2)).save(file, format="PNG")
    return file.getvalue()


@dataclass
class Bench:
    """An encoder over fakes, and everything around it."""

    encoder: Encoder
    towers: Mapping[str, LoadedTower]
    images: ImageStore
    metrics: Metrics

    @property
    def tower(self) -> FakeTower:
        return self.towers["a"].tower  # type: ignore[return-value]

    @property
    def preprocess(self) -> FakePreprocessor:
        return self.towers["a"].preprocess  # type: ignore[return-value]

    async def add(
        self, data: bytes, tenant: str = "t", model: str = "a", timeout_s: float = PATIENCE_S
    ) -> EncodeRequest:
        image: StoredImage = check_image(data, RetinaConfig(models=MODELS).images, tenant.encode())
        await self.images.put(tenant, image)
        return EncodeRequest(tenant, model, image.ref, timeout_s)

    def count(self, name: str) -> float:
        return self.metrics.snapshot().get(f"vision_encoder_{name}", 0)


MODELS = parse_config({"models": [{"name": name, "family": "fake"} for name in ("a", "b", "c")]}).models
OpenBench = Callable[..., Bench]
