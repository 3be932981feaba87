"""Those who wait for features: they leave, run out of time, are too many, or see the encoder stop."""

from __future__ import annotations

import asyncio

import pytest
from vision_encoder.bench import OpenBench, png, until, until_true

from deployments.errors import DeadlineExceeded, ImageNotFound, Overloaded, PartUnavailable
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import ImageRef

# ------------------------------------------------------------------------------------- cancellation


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


# ------------------------------------------------------------------------------------- deadlines and the end


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


async def test_looking_for_the_picture_is_within_the_deadline(open_bench: OpenBench) -> None:
    images = SlowToFind(10**6)
    bench = open_bench(images=images)
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        await bench.encoder.encode(await bench.add(png(1), timeout_s=0.01))
    images.gate.set()
    assert (await bench.encoder.encode(await bench.add(png(1)))).source == "tower"


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
