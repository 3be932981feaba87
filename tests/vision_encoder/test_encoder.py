"""The route of encode requests: caches, single flight, deadlines, overload, cancellation, bad pictures, sharing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from vision_encoder.bench import Bench, FakePreprocessor, FakeTower, OpenBench, png, until, until_true

from deployments.bytes_cache import open_bytes_cache
from deployments.errors import (
    DeadlineExceeded,
    ImageNotFound,
    ImageTooLarge,
    InvalidImage,
    Overloaded,
    PartUnavailable,
    UnknownModel,
)
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import ImageRef, StoredImage
from deployments.vision_encoder.towers import LoadedTower


def loaded(preprocessing: str = "p", tower: str = "t", dtype: str = "float32", offset: float = 0.0) -> LoadedTower:
    return LoadedTower(FakePreprocessor(preprocessing), FakeTower(tower, offset), dtype, "cpu")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- once for everybody


async def test_features_are_what_the_tower_gives(open_bench: OpenBench) -> None:
    bench = open_bench()
    features = await bench.encoder.encode(await bench.add(png(100, (4, 3))))
    assert features.array.tolist() == [[100, 1, 2]] * 3
    assert (features.dtype, features.source) == ("float32", "tower")
    assert features.encode_ms > 0
    assert not features.array.flags.writeable


async def test_twenty_at_once_are_one_run(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    answers = await asyncio.gather(*(bench.encoder.encode(request) for _ in range(20)))
    assert {answer.source for answer in answers} == {"tower"}
    assert all(np.array_equal(answer.array, answers[0].array) for answer in answers)
    assert bench.preprocess.num_calls == 1
    assert bench.tower.batches == [1]
    assert bench.count("tower_images") == 1
    assert (bench.count("requests.tower"), bench.count("requests.shared")) == (1, 19)


async def test_the_second_time_comes_from_memory(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    first = await bench.encoder.encode(request)
    again = await bench.encoder.encode(request)
    assert again.source == "memory"
    assert np.array_equal(again.array, first.array)
    assert bench.tower.batches == [1]


async def test_nothing_is_computed_again_after_a_restart(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    first = await bench.encoder.encode(request)
    await bench.encoder.close()

    restarted = open_bench(images=bench.images)
    answers = await asyncio.gather(*(restarted.encoder.encode(request) for _ in range(20)))
    assert {answer.source for answer in answers} == {"disk"}
    assert np.array_equal(answers[7].array, first.array)
    assert (await restarted.encoder.encode(request)).source == "memory"
    assert restarted.tower.batches == []
    assert restarted.count("tower_images") == 0


async def test_a_disk_level_of_0_bytes_is_off(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench(disk_cache_bytes=0)
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await bench.encoder.close()
    assert (await open_bench(images=bench.images, disk_cache_bytes=0).encoder.encode(request)).source == "tower"
    assert not (tmp_path / "features").exists()


async def test_a_memory_level_of_0_bytes_is_off(open_bench: OpenBench) -> None:
    bench = open_bench(memory_cache_bytes=0)
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await until_true(lambda: bench.encoder._cache._num_pending_writes == 0)
    assert (await bench.encoder.encode(request)).source == "disk"


async def test_a_damaged_disk_entry_is_computed_again(open_bench: OpenBench, tmp_path: Path) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    await bench.encoder.close()
    connection = sqlite3.connect(tmp_path / "features" / "cache.db")
    ((stored,),) = connection.execute("SELECT value FROM Cache").fetchall()
    connection.execute("UPDATE Cache SET value = ?", (stored[:-1] + b"!",))
    connection.commit()
    connection.close()

    restarted = open_bench(images=bench.images)
    assert (await restarted.encoder.encode(request)).source == "tower"
    assert restarted.count("cache_corrupt") == 1
    await restarted.encoder.close()
    assert (await open_bench(images=bench.images).encoder.encode(request)).source == "disk"


# ------------------------------------------------------------------------------------- who may see what


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


class SlowToFind(MemoryImageStore):
    """Holds those who look for a picture."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.gate = asyncio.Event()
        self.num_waiting = 0

    async def find(self, tenant: str, image_id: str) -> ImageRef:
        self.num_waiting += 1
        await self.gate.wait()
        return await super().find(tenant, image_id)


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


async def test_looking_for_the_picture_is_within_the_deadline(open_bench: OpenBench) -> None:
    images = SlowToFind(10**6)
    bench = open_bench(images=images)
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await bench.encoder.encode(await bench.add(png(1), timeout_s=0.01))
    images.gate.set()
    assert (await bench.encoder.encode(await bench.add(png(1)))).source == "tower"


async def test_closing_while_a_picture_is_looked_for(open_bench: OpenBench) -> None:
    images = SlowToFind(10**6)
    bench = open_bench(images=images)
    here, gone = [await bench.add(png(red)) for red in (1, 2)]
    await images.delete("t", gone.image.id)
    tasks = [asyncio.create_task(bench.encoder.encode(request)) for request in (here, gone)]
    await until_true(lambda: images.num_waiting == 2)
    await bench.encoder.close()
    images.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [PartUnavailable, ImageNotFound]


async def test_equal_pixels_in_another_shape_are_another_picture(open_bench: OpenBench) -> None:
    bench = open_bench()
    wide, tall = await bench.add(png(1, (6, 2))), await bench.add(png(1, (2, 6)))
    assert wide.image.id != tall.image.id
    assert (await bench.encoder.encode(wide)).array.shape == (2, 3)
    assert (await bench.encoder.encode(tall)).array.shape == (6, 3)


async def test_unknown_models(open_bench: OpenBench) -> None:
    bench = open_bench()
    with pytest.raises(UnknownModel, match="there is a"):
        await bench.encoder.encode(await bench.add(png(1), model="nobody"))


# ------------------------------------------------------------------------------------- sharing towers


async def test_equal_fingerprints_share_tower_and_features(open_bench: OpenBench) -> None:
    towers = {"a": loaded(), "b": loaded()}
    bench = open_bench(towers)
    assert (await bench.encoder.encode(await bench.add(png(1), model="a"))).source == "tower"
    assert (await bench.encoder.encode(await bench.add(png(1), model="b"))).source == "memory"
    assert towers["b"].tower.batches == []
    (tower,) = (await bench.encoder.statistics())["towers"]
    assert tower["models"] == ["a", "b"]


@pytest.mark.parametrize("other", [{"preprocessing": "q"}, {"tower": "u"}, {"dtype": "float16"}], ids=str)
async def test_any_difference_keeps_models_apart(open_bench: OpenBench, other: dict[str, str]) -> None:
    bench = open_bench({"a": loaded(), "b": loaded(offset=100.0, **other)})
    first = await bench.encoder.encode(await bench.add(png(1), model="a"))
    second = await bench.encoder.encode(await bench.add(png(1), model="b"))
    assert second.source == "tower"
    assert (first.array[0, 0], second.array[0, 0]) == (1, 101)
    assert [tower["models"] for tower in (await bench.encoder.statistics())["towers"]] == [["a"], ["b"]]


async def test_the_log_says_who_shares(open_bench: OpenBench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    open_bench({"a": loaded(), "b": loaded(tower="u"), "c": loaded()})
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("towers")]
    assert lines == [
        "model a: tower t, preprocessing p, width 3, float32 on cpu, shared with c",
        "model b: tower u, preprocessing p, width 3, float32 on cpu, not shared",
        "model c: tower t, preprocessing p, width 3, float32 on cpu, shared with a",
    ]


async def test_each_tower_has_one_thread(open_bench: OpenBench) -> None:
    bench = open_bench(preprocess_threads=3)
    requests = [await bench.add(png(red)) for red in range(30)]
    await asyncio.gather(*(bench.encoder.encode(request) for request in requests))
    assert bench.tower.threads == {"tower"}
    assert sum(bench.tower.batches) == 30


# ------------------------------------------------------------------------------------- cancellation and deadlines


@pytest.mark.parametrize("stage", ["preprocess", "tower"])
async def test_a_cancelled_waiter_leaves_the_others_alone(open_bench: OpenBench, stage: str) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    at = bench.preprocess if stage == "preprocess" else bench.tower
    at.gate.clear()
    waiters = [asyncio.create_task(bench.encoder.encode(request)) for _ in range(3)]
    await until(at.entered)
    waiters[0].cancel()  # the one that started it
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]
    at.gate.set()
    assert [(await waiter).source for waiter in waiters[1:]] == ["tower", "tower"]
    assert bench.preprocess.num_calls == 1
    assert bench.tower.batches == [1]
    assert bench.count("requests.cancelled") == 1


async def test_a_deadline_of_one_waiter_is_not_that_of_the_others(open_bench: OpenBench) -> None:
    bench = open_bench()
    patient = await bench.add(png(1))
    hasty = await bench.add(png(1), timeout_s=0.01)
    bench.tower.gate.clear()
    waiting = asyncio.create_task(bench.encoder.encode(patient))
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await bench.encoder.encode(hasty)
    bench.tower.gate.set()
    assert (await waiting).source == "tower"
    assert bench.count("requests.deadline_exceeded") == 1


async def test_the_configured_deadline_is_the_upper_bound(open_bench: OpenBench) -> None:
    bench = open_bench(timeout_s=0.01)
    bench.tower.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await bench.encoder.encode(await bench.add(png(1), timeout_s=1000))


async def test_queued_work_is_dropped_when_everybody_left(open_bench: OpenBench) -> None:
    bench = open_bench(max_batch_images=1)
    first, second, third = [await bench.add(png(red)) for red in (1, 2, 3)]
    bench.tower.gate.clear()
    running = asyncio.create_task(bench.encoder.encode(first))
    await until(bench.tower.entered)
    queued = [asyncio.create_task(bench.encoder.encode(second)) for _ in range(2)]
    other = asyncio.create_task(bench.encoder.encode(third))
    (lane,) = bench.encoder._lanes
    await until_true(lambda: lane.batcher.num_waiting == 1 and len(bench.encoder._flights) == 3)
    for task in queued:
        task.cancel()
    await asyncio.gather(*queued, return_exceptions=True)
    bench.tower.gate.set()
    assert (await running).source == (await other).source == "tower"
    assert bench.tower.batches == [1, 1]
    assert (await bench.encoder.statistics())["in_flight"] == 0


async def test_a_picture_can_be_asked_for_again_after_everybody_left(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    bench.preprocess.gate.clear()
    task = asyncio.create_task(bench.encoder.encode(request))
    await until(bench.preprocess.entered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.preprocess.gate.set()
    assert (await bench.encoder.encode(request)).source == "tower"
    assert bench.tower.batches == [1]


async def test_what_the_tower_has_begun_reaches_the_cache(open_bench: OpenBench) -> None:
    """Otherwise a picture slower than everybody's deadline would never be there."""
    bench = open_bench()
    request = await bench.add(png(1))
    bench.tower.gate.clear()
    task = asyncio.create_task(bench.encoder.encode(request))
    await until(bench.tower.entered)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    bench.tower.gate.set()
    await until_true(lambda: not bench.encoder._flights)
    assert (await bench.encoder.encode(request)).source == "memory"
    assert bench.tower.batches == [1]


async def test_closing_answers_those_who_wait(open_bench: OpenBench) -> None:
    bench = open_bench()
    requests = [await bench.add(png(red)) for red in (1, 2)]
    bench.preprocess.gate.clear()
    waiting = [asyncio.create_task(bench.encoder.encode(request)) for request in requests]
    await until(bench.preprocess.entered)
    closing = asyncio.create_task(bench.encoder.close())
    for task in waiting:
        with pytest.raises(PartUnavailable, match="stopped"):
            await task
    bench.preprocess.gate.set()
    await closing
    with pytest.raises(PartUnavailable, match="stopped"):
        await bench.encoder.encode(await bench.add(png(3)))


# ------------------------------------------------------------------------------------- overload


async def test_batches_stay_within_the_configured_patches(open_bench: OpenBench) -> None:
    bench = open_bench(max_batch_patches=6)  # a picture costs 3 of them
    requests = [await bench.add(png(red)) for red in range(6)]
    bench.tower.gate.clear()
    tasks = [asyncio.create_task(bench.encoder.encode(request)) for request in requests]
    await until(bench.tower.entered)
    (lane,) = bench.encoder._lanes
    await until_true(lambda: lane.batcher.num_waiting + lane.batcher.num_running == 6)
    bench.tower.gate.set()
    await asyncio.gather(*tasks)
    assert sum(bench.tower.batches) == 6
    assert max(bench.tower.batches) == 2


async def test_too_many_waiting_pictures_are_refused(open_bench: OpenBench) -> None:
    bench = open_bench(max_waiting_images=3, max_batch_images=1)
    requests = [await bench.add(png(red)) for red in range(6)]
    await bench.encoder.encode(requests[0])
    bench.tower.gate.clear()
    running = [asyncio.create_task(bench.encoder.encode(requests[1]))]
    await until(bench.tower.entered)  # of the one before
    await until(bench.tower.entered)
    running += [asyncio.create_task(bench.encoder.encode(request)) for request in requests[2:5]]
    await until_true(lambda: len(bench.encoder._flights) == 4)
    with pytest.raises(Overloaded) as caught:
        await bench.encoder.encode(requests[5])
    assert caught.value.message == "3 pictures wait for the vision encoder"
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s < 60
    # What is known already, or on its way, is still answered.
    assert (await bench.encoder.encode(requests[0])).source == "memory"
    running.append(asyncio.create_task(bench.encoder.encode(requests[4])))
    bench.tower.gate.set()
    assert {(await task).source for task in running} == {"tower"}
    assert (await bench.encoder.encode(requests[5])).source == "tower"
    assert bench.count("requests.overloaded") == 1


async def test_few_prepared_pictures_wait_for_the_tower(open_bench: OpenBench) -> None:
    """Pixels are far larger than files; only twice a batch of them may exist."""
    bench = open_bench(max_batch_images=2, preprocess_threads=4)
    requests = [await bench.add(png(red)) for red in range(20)]
    bench.tower.gate.clear()
    tasks = [asyncio.create_task(bench.encoder.encode(request)) for request in requests]
    (lane,) = bench.encoder._lanes
    await until_true(lambda: lane.room.locked() and lane.batcher.num_waiting + lane.batcher.num_running == 4)
    assert bench.preprocess.num_calls == 4
    bench.tower.gate.set()
    await asyncio.gather(*tasks)
    assert bench.preprocess.num_calls == 20


# ------------------------------------------------------------------------------------- bad pictures


async def test_a_picture_that_breaks_the_tower_fails_alone(open_bench: OpenBench) -> None:
    bench = open_bench()
    requests = [await bench.add(png(red)) for red in range(6)]
    bench.tower.poison = {3.0}
    bench.tower.gate.clear()
    blocker = asyncio.create_task(bench.encoder.encode(requests[0]))
    await until(bench.tower.entered)
    tasks = [asyncio.create_task(bench.encoder.encode(request)) for request in requests[1:]]
    (lane,) = bench.encoder._lanes
    await until_true(lambda: lane.batcher.num_waiting == 5)
    bench.tower.gate.set()
    answers = await asyncio.gather(blocker, *tasks, return_exceptions=True)
    guilty = answers.pop(3)
    assert isinstance(guilty, InvalidImage)
    assert guilty.message == "the picture could not be read by the vision tower"
    assert [answer.array[0, 0] for answer in answers] == [0, 1, 2, 4, 5]
    assert bench.tower.batches == [1, 5, 1, 1, 1, 1, 1]


async def test_a_bad_picture_is_refused_at_once_the_next_time(open_bench: OpenBench) -> None:
    bench = open_bench()
    bench.tower.poison = {3.0}
    request = await bench.add(png(3))
    for _ in range(3):
        with pytest.raises(InvalidImage, match="could not be read by the vision tower"):
            await bench.encoder.encode(request)
    assert bench.tower.batches == [1]
    assert bench.preprocess.num_calls == 1
    assert (await bench.encoder.statistics())["refused"] == 1
    assert (await bench.encoder.encode(await bench.add(png(4)))).source == "tower"


async def test_a_picture_that_breaks_the_preprocessing(open_bench: OpenBench) -> None:
    bench = open_bench()
    bench.preprocess.poison = {(7, 7)}
    request = await bench.add(png(1, (7, 7)))
    for _ in range(2):
        with pytest.raises(InvalidImage, match="could not be prepared") as caught:
            await bench.encoder.encode(request)
        assert "internals" not in caught.value.message
    assert bench.preprocess.num_calls == 1
    assert (await bench.encoder.encode(await bench.add(png(1)))).source == "tower"


async def test_stored_bytes_are_not_trusted(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1, (400, 300)))
    await bench.images.put("t", StoredImage(request.image, png(1, (400, 300))[:60]))
    with pytest.raises(InvalidImage, match="damaged"):
        await bench.encoder.encode(request)


async def test_kinds_of_refusal_are_remembered_as_they_were(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    await bench.images.put("t", StoredImage(request.image, png(1, (20_000, 1))))
    for _ in range(2):
        with pytest.raises(ImageTooLarge, match="20000 x 1") as caught:
            await bench.encoder.encode(request)
        assert caught.value.param == "image"


async def test_a_missing_picture_is_not_remembered_as_bad(open_bench: OpenBench) -> None:
    bench = open_bench()
    request = await bench.add(png(1))
    await bench.images.delete("t", request.image.id)
    with pytest.raises(ImageNotFound):
        await bench.encoder.encode(request)
    await bench.add(png(1))
    assert (await bench.encoder.encode(request)).source == "tower"


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (MemoryError, Overloaded),
        (type("OutOfMemoryError", (RuntimeError,), {}), Overloaded),
        (type("AcceleratorError", (RuntimeError,), {}), PartUnavailable),
    ],
)
async def test_the_machine_s_faults_are_not_blamed_on_the_picture(
    open_bench: OpenBench, kind: type[Exception], answer: type[Exception]
) -> None:
    bench = open_bench()
    bench.tower.poison, bench.tower.error = {3.0}, kind
    request = await bench.add(png(3))
    with pytest.raises(answer):
        await bench.encoder.encode(request)
    statistics = await bench.encoder.statistics()
    (tower,) = statistics["towers"]
    assert bool(tower["fault"]) == (answer is PartUnavailable)
    assert (statistics["closing"] is not None) == (answer is PartUnavailable)
    assert (statistics["refused"], bench.tower.batches) == (0, [1])


async def test_lack_of_memory_passes(open_bench: OpenBench) -> None:
    bench = open_bench()
    bench.tower.poison, bench.tower.error = {3.0}, MemoryError
    request = await bench.add(png(3))
    with pytest.raises(Overloaded):
        await bench.encoder.encode(request)
    bench.tower.poison = set()
    assert (await bench.encoder.encode(request)).source == "tower"


async def test_a_device_that_failed_is_told_to_whoever_can_replace_the_replica(open_bench: OpenBench) -> None:
    bench = open_bench({"a": loaded(), "b": loaded(tower="u")})
    seen = await bench.add(png(1), model="b")
    await bench.encoder.encode(seen)
    assert (await bench.encoder.statistics())["closing"] is None
    broken = bench.towers["b"].tower
    assert isinstance(broken, FakeTower)
    broken.poison, broken.error = {3.0}, type("AcceleratorError", (RuntimeError,), {})
    with pytest.raises(PartUnavailable, match="device failed"):
        await bench.encoder.encode(await bench.add(png(3), model="b"))
    assert (await bench.encoder.statistics())["closing"] == "the device of a vision tower failed for good"
    broken.poison = set()
    with pytest.raises(PartUnavailable, match="stopped") as caught:
        await bench.encoder.encode(await bench.add(png(4), model="b"))
    assert caught.value.retry_after_s
    assert (await bench.encoder.encode(seen)).source == "memory"
    assert (await bench.encoder.encode(await bench.add(png(3), model="a"))).source == "tower"


async def test_a_tower_that_gives_the_wrong_shape(open_bench: OpenBench) -> None:
    bench = open_bench()
    bench.tower.width = 5
    with pytest.raises(InvalidImage):
        await bench.encoder.encode(await bench.add(png(1)))


async def test_a_failing_image_store_is_unavailable(open_bench: OpenBench) -> None:
    class BrokenStore(MemoryImageStore):
        async def get(self, tenant: str, image_id: str) -> StoredImage:
            raise OSError("disk on fire")

    bench = open_bench(images=BrokenStore(10**6))
    with pytest.raises(PartUnavailable, match="image store"):
        await bench.encoder.encode(await bench.add(png(1)))


async def test_what_was_seen_survives_a_fault_of_the_image_store(open_bench: OpenBench) -> None:
    """Not to know whether a picture is there is no deletion."""

    class MoodyStore(MemoryImageStore):
        is_broken = False

        async def find(self, tenant: str, image_id: str) -> ImageRef:
            if self.is_broken:
                raise PartUnavailable("the image store cannot be read")
            return await super().find(tenant, image_id)

    images = MoodyStore(10**6)
    bench = open_bench(images=images)
    request = await bench.add(png(1))
    await bench.encoder.encode(request)
    images.is_broken = True
    with pytest.raises(PartUnavailable, match="image store"):
        await bench.encoder.encode(request)
    images.is_broken = False
    assert (await bench.encoder.encode(request)).source == "memory"


# ------------------------------------------------------------------------------------- figures


async def test_statistics_can_be_read_at_three_in_the_morning(open_bench: OpenBench) -> None:
    bench = open_bench(memory_cache_bytes=1000, disk_cache_bytes=100_000)
    requests = [await bench.add(png(red)) for red in (1, 2)]
    for request in (*requests, requests[0]):
        await bench.encoder.encode(request)
    await until_true(lambda: bench.encoder._cache._num_pending_writes == 0)
    statistics = json.loads(json.dumps(await bench.encoder.statistics()))
    assert statistics["closing"] is None
    (tower,) = statistics["towers"]
    assert {key: tower[key] for key in ("models", "tower", "preprocessing", "width", "dtype", "device", "fault")} == {
        "models": ["a"],
        "tower": "tower",
        "preprocessing": "preprocessing",
        "width": 3,
        "dtype": "float32",
        "device": "cpu",
        "fault": "",
    }
    cache = statistics["cache"]
    assert cache["memory"] == {"entries": 2, "bytes": 72, "limit_bytes": 1000, "hits": 1}
    assert cache["disk"]["entries"] == 2
    assert (cache["disk"]["limit_bytes"], cache["disk"]["hits"], cache["misses"]) == (100_000, 0, 2)
    assert (statistics["waiting"], statistics["in_flight"], statistics["max_waiting"]) == (0, 0, 256)
    assert statistics["metrics"] == {
        "vision_encoder_requests.memory": 1,
        "vision_encoder_requests.tower": 2,
        "vision_encoder_tower_batches": 2,
        "vision_encoder_tower_images": 2,
    }
