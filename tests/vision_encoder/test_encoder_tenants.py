"""Who may see what: tenants share nothing, and of a deleted picture nothing is told or kept."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from vision_encoder.bench import Bench, OpenBench, loaded, png, until, until_true

from deployments.bytes_cache import open_bytes_cache
from deployments.errors import ImageNotFound, InvalidImage


async def test_tenants_share_nothing(open_bench: OpenBench) -> None:
    bench = open_bench()
    mine, theirs = await bench.add(png(1), "one"), await bench.add(png(1), "other")
    assert mine.image.id != theirs.image.id
    await bench.encoder.encode(mine)
    assert (await bench.encoder.encode(theirs)).source == "tower"
    assert bench.tower.batches == [1, 1]


async def test_a_tenant_cannot_name_the_picture_of_another(open_bench: OpenBench) -> None:
    """Not even when its features lie in the cache, or are being computed."""
    bench = open_bench()
    mine = await bench.add(png(1), "one")
    stolen = type(mine)("other", mine.model, mine.image, mine.timeout_s)
    bench.tower.gate.clear()
    first = asyncio.create_task(bench.encoder.encode(mine))
    await until(bench.tower.entered)
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(stolen)
    bench.tower.gate.set()
    await first
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(stolen)
    assert bench.tower.batches == [1]


async def keys_on_disk(bench: Bench, folder: Path) -> list[str]:
    await until_true(lambda: bench.encoder._cache._num_pending_writes == 0)
    cache = open_bytes_cache(folder / "features")
    keys = cache.keys()
    cache.close()
    return keys


async def test_nobody_is_told_of_a_deleted_picture(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench({"a": loaded(), "b": loaded(tower="u")})
    deleted, kept = [await bench.add(png(red)) for red in (1, 2)]
    for model in ("a", "b"):
        for request in (deleted, kept):
            await bench.encoder.encode(dataclasses.replace(request, model=model))
    assert len(await keys_on_disk(bench, tmp_path)) == 4
    await bench.images.delete("t", deleted.image.id)
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(deleted)
    assert len(await keys_on_disk(bench, tmp_path)) == 2
    assert (await bench.encoder.statistics())["cache"]["memory"]["entries"] == 2
    assert (await bench.encoder.encode(kept)).source == "memory"
    assert bench.count("requests.image_not_found") == 1
    await bench.add(png(1))
    assert (await bench.encoder.encode(deleted)).source == "tower"


async def test_a_picture_deleted_while_nobody_ran_is_not_taken_from_disk(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await bench.encoder.close()
    await bench.images.delete("t", request.image.id)
    restarted = open_bench(images=bench.images)
    with pytest.raises(ImageNotFound):
        await restarted.encoder.encode(request)
    assert await keys_on_disk(restarted, tmp_path) == []


async def test_a_picture_deleted_while_it_is_looked_at_is_not_kept(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    bench.tower.gate.clear()
    first = asyncio.create_task(bench.encoder.encode(request))
    await until(bench.tower.entered)
    await bench.images.delete("t", request.image.id)
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(request)
    bench.tower.gate.set()
    assert (await first).source == "tower"  # it had asked before
    assert await keys_on_disk(bench, tmp_path) == []
    assert (await bench.encoder.statistics())["cache"]["memory"]["entries"] == 0


async def test_a_refusal_of_a_deleted_picture_is_forgotten(open_bench: OpenBench) -> None:
    bench = open_bench()
    bench.tower.poison = {3.0}
    request = await bench.add(png(3))
    with pytest.raises(InvalidImage):
        await bench.encoder.encode(request)
    await bench.images.delete("t", request.image.id)
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(request)
    assert (await bench.encoder.statistics())["refused"] == 0
