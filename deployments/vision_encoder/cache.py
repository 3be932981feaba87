"""Features that were computed before: least recently used in memory, over checked bytes on disk. It knows no towers.

A level that fails or is damaged costs a tower run, never a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from cachetools import LRUCache

from deployments.bytes_cache import BytesCache, open_bytes_cache
from deployments.config import VisionEncoderConfig
from deployments.errors import ConfigError
from deployments.metrics import Metrics
from deployments.types import FeatureDtype, Json

MAX_PENDING_WRITES = 64  # features that wait for the disk; beyond that they stay in memory only
NUMPY_DTYPES: dict[FeatureDtype, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Features:
    """Shared by all who ask for them: the array is read-only."""

    array: np.ndarray  # (image_tokens, D); bfloat16 as uint16 bits
    dtype: FeatureDtype


def feature_key(tenant: str, image_id: str, tower: str, preprocessing: str, dtype: FeatureDtype) -> str:
    """Everything that features depend on, and the tenant, so that nobody hits or times another's picture."""
    return hashlib.sha256(json.dumps([tenant, image_id, tower, preprocessing, dtype]).encode()).hexdigest()


class FeatureCache:
    """Used from one event loop; the disk is read and written by threads of its own."""

    def __init__(self, memory_bytes: int, disk: BytesCache | None = None, disk_bytes: int = 0) -> None:
        self._memory: LRUCache[str, Features] = LRUCache(memory_bytes, getsizeof=lambda features: features.array.nbytes)
        self._disk = disk
        self._disk_bytes = disk_bytes
        # Reading apart from writing: a request must not wait until others' features are written.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="features-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="features-write")
        self._counts: Counter[str] = Counter()
        self._num_pending_writes = 0

    def in_memory(self, key: str) -> Features | None:
        features = self._memory.get(key)
        self._counts["memory_hits"] += features is not None
        return features

    async def on_disk(self, key: str) -> Features | None:
        """What memory does not hold; afterwards it does."""
        features = await self._read(key)
        self._counts["disk_hits" if features is not None else "misses"] += 1
        if features is not None:
            self._remember(key, features)
        return features

    def add(self, key: str, features: Features) -> None:
        """To memory now, to disk when its thread comes to it."""
        self._remember(key, features)
        if self._disk is None:
            return
        if self._num_pending_writes >= MAX_PENDING_WRITES:
            self._counts["write_skipped"] += 1
            return
        self._num_pending_writes += 1
        writing = asyncio.get_running_loop().run_in_executor(self._writer, self._write, self._disk, key, features)
        writing.add_done_callback(self._count_write)

    async def drop(self, keys: Sequence[str]) -> None:
        """Forget features on both levels. Comes back when the disk has, what is still being written included."""
        for key in keys:
            self._memory.pop(key, None)
        if self._disk is not None:
            # By the writer, so that it comes after writes of the same keys.
            loop = asyncio.get_running_loop()
            self._counts["write_failed"] += not await loop.run_in_executor(self._writer, self._erase, self._disk, keys)

    async def statistics(self) -> Json:
        entries, num_bytes = await self._disk_size()
        return {
            "memory": {
                "entries": len(self._memory),
                "bytes": int(self._memory.currsize),
                "limit_bytes": int(self._memory.maxsize),
                "hits": self._counts["memory_hits"],
            },
            "disk": {
                "entries": entries,
                "bytes": num_bytes,
                "limit_bytes": self._disk_bytes,
                "hits": self._counts["disk_hits"],
                "corrupt": self._disk.num_corrupt if self._disk is not None else 0,
                "pending_writes": self._num_pending_writes,
                "read_failed": self._counts["read_failed"],
                "write_failed": self._counts["write_failed"],
                "write_skipped": self._counts["write_skipped"],
            },
            "misses": self._counts["misses"],
        }

    async def close(self) -> None:
        """Write what is still to be written."""
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._reader.shutdown)
        if self._disk is not None:
            self._disk.close()

    def _remember(self, key: str, features: Features) -> None:
        if features.array.nbytes <= self._memory.maxsize:
            self._memory[key] = features

    async def _read(self, key: str) -> Features | None:
        if self._disk is None:
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, read_features, self._disk, key)
        except OSError:
            self._counts["read_failed"] += 1
            logger.warning("the disk level of the feature cache cannot be read", exc_info=True)
            return None

    @staticmethod
    def _write(disk: BytesCache, key: str, features: Features) -> bool:
        try:
            disk.put(key, to_record(features))
        except OSError:
            logger.warning("the disk level of the feature cache cannot be written", exc_info=True)
            return False
        return True

    @staticmethod
    def _erase(disk: BytesCache, keys: Sequence[str]) -> bool:
        try:
            for key in keys:
                disk.delete(key)
        except OSError:
            logger.warning("features cannot be removed from the disk level of the feature cache", exc_info=True)
            return False
        return True

    def _count_write(self, writing: asyncio.Future[bool]) -> None:
        self._num_pending_writes -= 1
        self._counts["write_failed"] += not writing.result()

    async def _disk_size(self) -> tuple[int | None, int | None]:
        """Entries and bytes; None when the disk does not say."""
        disk = self._disk
        if disk is None:
            return 0, 0
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: (len(disk), disk.num_bytes))
        except OSError:
            logger.warning("the disk level of the feature cache cannot be read", exc_info=True)
            return None, None


def to_record(features: Features) -> bytes:
    """One safetensors file; the name of its tensor is the dtype of the features."""
    return safetensors.numpy.save({features.dtype: features.array})


def from_record(record: bytes) -> Features | None:
    """None when it is no record of ours."""
    try:
        ((name, array),) = safetensors.numpy.load(record).items()
    except (safetensors.SafetensorError, ValueError, KeyError):
        return None
    dtype = next((dtype for dtype in NUMPY_DTYPES if dtype == name), None)
    if dtype is None or array.ndim != 2 or array.dtype.name != NUMPY_DTYPES[dtype]:
        return None
    return freeze(array, dtype)


def freeze(array: np.ndarray, dtype: FeatureDtype) -> Features:
    array.flags.writeable = False
    return Features(array, dtype)


def read_features(disk: BytesCache, key: str) -> Features | None:
    """Blocks. A record that is damaged or not ours is dropped."""
    record = disk.get(key)
    if record is None:
        return None
    features = from_record(record)
    if features is None:
        disk.drop(key, "no features")
    return features


def open_feature_cache(config: VisionEncoderConfig, folder: Path, metrics: Metrics) -> FeatureCache:
    """Both levels as configured; a level of 0 bytes is off. Blocks. Raises ConfigError when the folder is unusable."""
    if config.disk_cache_bytes == 0:
        return FeatureCache(config.memory_cache_bytes)
    try:
        disk = open_bytes_cache(
            folder,
            config.disk_cache_bytes,
            eviction="least-recently-used",
            on_corrupt=lambda key: metrics.count("vision_encoder_cache_corrupt"),
        )
    except OSError as error:
        raise ConfigError(
            f"the feature cache {folder} cannot be opened ({error}): remove that folder, or set "
            "vision_encoder.disk_cache_bytes to 0",
            "data_dir",
        ) from error
    return FeatureCache(config.memory_cache_bytes, disk, config.disk_cache_bytes)
