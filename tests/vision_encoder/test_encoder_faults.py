"""What breaks: a bad picture fails alone, and at once the next time; machine and image store are not blamed on it."""

from __future__ import annotations

import asyncio

import pytest
from vision_encoder.bench import FakeTower, OpenBench, loaded, png, until, until_true

from deployments.errors import ImageNotFound, ImageTooLarge, InvalidImage, Overloaded, PartUnavailable
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import ImageRef, StoredImage

# ------------------------------------------------------------------------------------- pictures


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


# ------------------------------------------------------------------------------------- the machine


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


# ------------------------------------------------------------------------------------- the image store


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
