"""Pictures on their way in: how many are checked, how many wait, and what becomes of those whose clients leave."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from ingress.bench import BuildBench, error_of, picture

from deployments.config import ImageConfig, RetinaConfig, parse_config
from deployments.errors import ImageNotFound, Overloaded, PartUnavailable
from deployments.images.check import check_image
from deployments.images.stores.memory import MemoryImageStore
from deployments.ingress import pictures
from deployments.ingress.pictures import PictureIntake
from deployments.types import ImageRef, StoredImage

PATIENCE_S = 10.0


@dataclass
class SlowCheck:
    """In the place of check_image: each check waits in its thread until the test lets one go on."""

    going_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_running: int = 0
    most_running: int = 0
    checked: list[bytes] = field(default_factory=list)

    def __call__(self, data: bytes, limits: ImageConfig, secret: bytes) -> StoredImage:
        with self.lock:
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
        assert self.going_on.acquire(timeout=PATIENCE_S)
        with self.lock:
            self.num_running -= 1
            self.checked.append(data)
        return StoredImage(ImageRef(data.decode(), 1, 1, len(data), "image/png"), data)


class FailingStore(MemoryImageStore):
    async def put(self, tenant: str, image: StoredImage) -> None:
        raise PartUnavailable("the disk is full")


@pytest.fixture
def slow_check(monkeypatch: pytest.MonkeyPatch) -> SlowCheck:
    check = SlowCheck()
    monkeypatch.setattr(pictures, "check_image", check)
    return check


def config_of(threads: int, waiting: int) -> RetinaConfig:
    ingress = {"picture_threads": threads, "max_waiting_pictures": waiting}
    return parse_config({"models": [{"name": "fake", "family": "fake"}], "ingress": ingress})


def build_intake(threads: int, waiting: int, store: MemoryImageStore | None = None) -> PictureIntake:
    return PictureIntake(store or MemoryImageStore(1000), config_of(threads, waiting), b"s" * 32)


async def settle(condition: object) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - threads show no asyncio event
            await asyncio.sleep(0)


async def test_so_many_wait_and_the_next_is_refused(slow_check: SlowCheck) -> None:
    intake = build_intake(threads=2, waiting=3)
    adding = [asyncio.create_task(intake.add("t", f"{number}".encode())) for number in range(5)]
    await settle(lambda: slow_check.num_running == 2 and intake.num_waiting == 3)
    with pytest.raises(Overloaded, match="3 pictures wait") as refusal:
        await intake.add("t", b"too many")
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1.0)
    slow_check.going_on.release(5)
    assert [ref.id for ref in await asyncio.gather(*adding)] == ["0", "1", "2", "3", "4"]
    assert (slow_check.most_running, intake.num_waiting) == (2, 0)
    slow_check.going_on.release()
    assert (await intake.add("t", b"later")).id == "later"
    intake.close()


async def test_who_leaves_while_waiting_makes_room_and_is_not_checked(slow_check: SlowCheck) -> None:
    intake = build_intake(threads=1, waiting=1)
    first = asyncio.create_task(intake.add("t", b"first"))
    gone = asyncio.create_task(intake.add("t", b"gone"))
    await settle(lambda: intake.num_waiting == 1)
    gone.cancel()
    await asyncio.wait({gone})
    stays = asyncio.create_task(intake.add("t", b"stays"))
    slow_check.going_on.release(2)
    await asyncio.gather(first, stays)
    assert slow_check.checked == [b"first", b"stays"]
    intake.close()


async def test_who_leaves_during_the_check_keeps_its_thread_to_the_end(slow_check: SlowCheck) -> None:
    intake = build_intake(threads=1, waiting=1)
    gone = asyncio.create_task(intake.add("t", b"gone"))
    await settle(lambda: slow_check.num_running == 1)
    gone.cancel()
    await asyncio.wait({gone})
    waits = asyncio.create_task(intake.add("t", b"waits"))
    await settle(lambda: intake.num_waiting == 1)
    with pytest.raises(Overloaded):
        await intake.add("t", b"too many")
    slow_check.going_on.release(2)
    await waits
    assert slow_check.most_running == 1
    await intake.drain()
    intake.close()


async def test_a_failing_store_gives_the_place_back() -> None:
    store = FailingStore(1000)
    intake = build_intake(threads=1, waiting=1, store=store)
    for _ in range(3):
        with pytest.raises(PartUnavailable):
            await intake.add("t", picture())
    intake.close()


async def test_finding_a_picture() -> None:
    intake = build_intake(threads=1, waiting=1)
    ref = await intake.add("t", picture())
    assert await intake.find("t", ref.id) == ref
    for tenant, image_id in (("other", ref.id), ("t", "0" * 64), ("t", "../x")):
        with pytest.raises(ImageNotFound):
            await intake.find(tenant, image_id)
    intake.close()


async def test_clients_are_told_to_come_back(build_bench: BuildBench, slow_check: SlowCheck) -> None:
    bench = build_bench(ingress={"picture_threads": 1, "max_waiting_pictures": 1})

    def post() -> asyncio.Task[object]:
        return asyncio.create_task(bench.client.post("/images", files={"image": b"0"}))

    under_way = [post(), post()]
    waiting = bench.app.state.services.pictures
    await settle(lambda: waiting.num_waiting == 1)
    assert (await bench.client.get("/-/ingress")).json()["waiting_pictures"] == 1
    for reply in (
        await bench.client.post("/images", files={"image": b"0"}),
        await bench.client.post("/chat", data={"message": "Hello"}, files={"image": b"0"}),
    ):
        error_of(reply, 503, "overloaded")
        assert reply.headers["retry-after"] == "1"
    slow_check.going_on.release(2)
    for task in under_way:
        assert (await task).status_code == 201  # type: ignore[attr-defined]


async def test_what_is_stored_already_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[bytes] = []

    def check(data: bytes, limits: ImageConfig, secret: bytes) -> StoredImage:
        checked.append(data)
        return check_image(data, limits, secret)

    monkeypatch.setattr(pictures, "check_image", check)
    store = MemoryImageStore(1_000_000)
    intake = build_intake(2, 8, store)
    first, other = picture(), picture(size=(9, 9))
    ref = await intake.add("one", first)
    assert await intake.add("one", first) == ref
    await intake.add("one", other)
    assert checked == [first, other]
    assert (await intake.add("two", first)).id != ref.id  # of another tenant it is not known
    await intake.delete("one", ref.id)
    assert await intake.add("one", first) == ref
    assert (await store.get("one", ref.id)).data == first
    assert checked == [first, other, first, first]
    intake.close()
