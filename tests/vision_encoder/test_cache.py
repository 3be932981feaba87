"""Two levels of features: limits in bytes, records without pickle, failures that cost nothing but a tower run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from vision_encoder.bench import until_true

from deployments.bytes_cache import open_bytes_cache
from deployments.config import VisionEncoderConfig
from deployments.errors import ConfigError
from deployments.metrics import Metrics
from deployments.types import FeatureDtype
from deployments.vision_encoder.cache import (
    MAX_PENDING_WRITES,
    FeatureCache,
    Features,
    feature_key,
    freeze,
    from_record,
    open_feature_cache,
    to_record,
)


def features(value: float = 1.0, rows: int = 25, dtype: FeatureDtype = "float32") -> Features:
    numpy_dtype = "uint16" if dtype == "bfloat16" else dtype
    return freeze(np.full((rows, 10), value, dtype=numpy_dtype), dtype)  # 1000 bytes in float32


def test_keys_depend_on_everything() -> None:
    base = ("t", "id", "tower", "pre", "float32")
    others = [(*base[:i], "x", *base[i + 1 :]) for i in range(5)] + [("ti", "d", "tower", "pre", "float32")]
    keys = {feature_key(*parts) for parts in (base, *others)}  # type: ignore[arg-type]
    assert len(keys) == 7


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_records_keep_every_bit(dtype: FeatureDtype) -> None:
    array = np.random.default_rng(0).integers(0, 2**16, (7, 5), dtype=np.uint16)
    made = freeze(array if dtype == "bfloat16" else array.view("float16").astype(dtype), dtype)
    back = from_record(to_record(made))
    assert back is not None
    assert back.dtype == dtype
    assert back.array.tobytes() == made.array.tobytes()
    assert back.array.dtype == made.array.dtype
    assert not back.array.flags.writeable


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 100,
        safetensors.numpy.save({"other": np.zeros((2, 2), np.float32)}),
        safetensors.numpy.save({"float32": np.zeros((2, 2), np.float16)}),
        safetensors.numpy.save({"float32": np.zeros(4, np.float32)}),
        safetensors.numpy.save({"float32": np.zeros((2, 2), np.float32), "float16": np.zeros((2, 2), np.float16)}),
        safetensors.numpy.save({}),
    ],
)
def test_other_records_are_not_believed(record: bytes) -> None:
    assert from_record(record) is None


async def test_memory_keeps_the_last_used_within_its_bytes() -> None:
    cache = FeatureCache(memory_bytes=3000)
    for key in "abc":
        cache.add(key, features())
    assert cache.in_memory("a") is not None
    cache.add("d", features())
    assert [key for key in "abcd" if cache.in_memory(key)] == ["a", "c", "d"]
    assert (await cache.statistics())["memory"]["bytes"] == 3000
    await cache.close()


async def test_what_is_larger_than_the_memory_level_goes_past_it(tmp_path: Path) -> None:
    cache = FeatureCache(500, open_bytes_cache(tmp_path))
    cache.add("large", features())
    assert cache.in_memory("large") is None
    await until_true(lambda: cache._num_pending_writes == 0)
    assert await cache.on_disk("large") is not None
    await cache.close()


async def test_the_disk_level_keeps_the_last_used_within_its_bytes(tmp_path: Path) -> None:
    record_bytes = len(to_record(features())) + 16
    disk = open_bytes_cache(tmp_path, 3 * record_bytes, eviction="least-recently-used")
    cache = FeatureCache(0, disk, 3 * record_bytes)
    for key in "abc":
        cache.add(key, features())
    await until_true(lambda: cache._num_pending_writes == 0)
    assert await cache.on_disk("a") is not None
    cache.add("d", features())
    await until_true(lambda: cache._num_pending_writes == 0)
    assert [key for key in "abcd" if await cache.on_disk(key)] == ["a", "c", "d"]
    assert (await cache.statistics())["disk"]["bytes"] == 3 * record_bytes
    await cache.close()


async def test_a_record_that_is_no_features_is_dropped_and_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    with_junk = open_bytes_cache(tmp_path)
    with_junk.put("key", b"a value with a right checksum")
    with_junk.close()
    cache = open_feature_cache(VisionEncoderConfig(), tmp_path, metrics)
    assert await cache.on_disk("key") is None
    assert await cache.on_disk("key") is None
    assert metrics.snapshot() == {"vision_encoder_cache_corrupt": 1}
    await cache.close()


class FailingDisk:
    """A BytesCache whose disk is gone."""

    num_corrupt = 0

    def get(self, key: str) -> bytes | None:
        raise OSError("disk on fire")

    def put(self, key: str, value: bytes) -> None:
        raise OSError("disk on fire")

    def delete(self, key: str) -> bool:
        raise OSError("disk on fire")

    def __len__(self) -> int:
        raise OSError("disk on fire")

    def close(self) -> None: ...


async def test_a_failing_disk_is_counted_and_logged_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(10_000, FailingDisk())  # type: ignore[arg-type]
    assert await cache.on_disk("key") is None
    cache.add("key", features())
    await until_true(lambda: cache._num_pending_writes == 0)
    assert cache.in_memory("key") is not None
    disk = (await cache.statistics())["disk"]
    assert (disk["read_failed"], disk["write_failed"], disk["entries"]) == (1, 1, None)
    assert "disk on fire" in caplog.text
    await cache.drop(["key"])
    assert cache.in_memory("key") is None
    assert (await cache.statistics())["disk"]["write_failed"] == 2
    await cache.close()


async def test_writes_beyond_the_bound_are_skipped_and_counted(tmp_path: Path) -> None:
    cache = FeatureCache(10**6, open_bytes_cache(tmp_path))
    for number in range(MAX_PENDING_WRITES + 5):  # without a chance for the loop to hear of finished ones
        cache.add(str(number), features())
    assert (await cache.statistics())["disk"]["write_skipped"] == 5
    await cache.close()
    assert len(open_bytes_cache(tmp_path)) == MAX_PENDING_WRITES


async def test_closing_writes_what_is_pending(tmp_path: Path) -> None:
    cache = FeatureCache(0, open_bytes_cache(tmp_path))
    cache.add("key", features(7.0))
    await cache.close()
    again = FeatureCache(0, open_bytes_cache(tmp_path))
    found = await again.on_disk("key")
    assert found is not None
    assert found.array[0, 0] == 7
    await again.close()


@pytest.mark.parametrize("has_disk", [True, False])
async def test_what_is_dropped_is_gone_from_both_levels(tmp_path: Path, has_disk: bool) -> None:
    cache = FeatureCache(10_000, open_bytes_cache(tmp_path) if has_disk else None)
    for key in ("a", "b", "c"):
        cache.add(key, features())
    await cache.drop(["a", "c", "never seen"])  # while they are still being written
    assert [key for key in "abc" if cache.in_memory(key)] == ["b"]
    assert [key for key in "ac" if await cache.on_disk(key)] == []
    await cache.close()
    assert open_bytes_cache(tmp_path).keys() == (["b"] if has_disk else [])


async def test_two_caches_share_a_folder(tmp_path: Path) -> None:
    one, other = (open_feature_cache(VisionEncoderConfig(), tmp_path, Metrics()) for _ in range(2))
    one.add("key", features())
    await until_true(lambda: one._num_pending_writes == 0)
    assert await other.on_disk("key") is not None
    await asyncio.gather(one.close(), other.close())


def test_a_damaged_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"this is no database " * 100)
    with pytest.raises(ConfigError, match="remove that folder"):
        open_feature_cache(VisionEncoderConfig(), tmp_path, Metrics())
