"""The tower's thread: batches without a timer, isolation of failures, cancellation, the end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest
from vision_encoder.bench import PATIENCE_S

from deployments.errors import InvalidImage, Overloaded, PartUnavailable
from deployments.metrics import Metrics
from deployments.models.family import Pixels
from deployments.vision_encoder.batcher import Batcher, Pace, blame
from deployments.vision_encoder.cache import Features, freeze
from deployments.vision_encoder.line import ONE_PIECE, PassLimits

LIMITS = PassLimits(max_images=4, max_patches=100)


def pixels(number: int, cost: int = 1) -> Pixels:
    return Pixels({"number": np.array(number)}, cost, num_tokens=1)


class AcceleratorError(RuntimeError):
    """As torch calls a device that has failed."""


class StoppableTower:
    """Squares numbers, refuses 13, dies in its own ways of 99 and 666, and shows the batches it got."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()

    def __call__(self, batch: Sequence[Pixels]) -> list[Features]:
        numbers = [int(member.tensors["number"]) for member in batch]
        self.batches.append(numbers)
        self.entered.release()
        assert self.gate.wait(PATIENCE_S)
        if 13 in numbers:
            raise ValueError("unlucky")
        if 99 in numbers:
            raise AcceleratorError("misaligned address")
        if 666 in numbers:
            raise SystemExit
        return [freeze(np.full((1, 1), number**2, np.float32), "float32") for number in numbers]


@pytest.fixture
def tower() -> StoppableTower:
    return StoppableTower()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def batcher(tower: StoppableTower, metrics: Metrics) -> Iterator[Batcher]:
    batcher = Batcher(tower, LIMITS, metrics)
    yield batcher
    tower.gate.set()
    batcher.close()


def value(future: object) -> float:
    return float(future.result(PATIENCE_S).array[0, 0])  # type: ignore[attr-defined]


def hold(batcher: Batcher, tower: StoppableTower) -> None:
    """Let the tower stand in its first batch."""
    batcher.submit(pixels(0))
    assert tower.entered.acquire(timeout=PATIENCE_S)


def test_a_lone_picture_does_not_wait(batcher: Batcher, tower: StoppableTower) -> None:
    tower.gate.set()
    assert value(batcher.submit(pixels(3)).future) == 9
    assert tower.batches == [[3]]


def test_what_gathered_meanwhile_goes_together(batcher: Batcher, tower: StoppableTower, metrics: Metrics) -> None:
    hold(batcher, tower)
    jobs = [batcher.submit(pixels(number)) for number in range(1, 7)]
    assert batcher.num_waiting == 6
    assert batcher.num_running == 1
    tower.gate.set()
    assert [value(job.future) for job in jobs] == [1, 4, 9, 16, 25, 36]
    assert tower.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert metrics.snapshot() == {
        "vision_encoder_tower_batches": 3,
        "vision_encoder_tower_images": 7,
        "vision_encoder_tower_patches": 7,
    }
    assert batcher.pace.seconds_per_image > 0


def test_batches_stay_within_their_patches(batcher: Batcher, tower: StoppableTower) -> None:
    hold(batcher, tower)
    costs = {1: 50, 2: 50, 3: 10, 4: 500, 5: 10, 6: 91}
    jobs = [batcher.submit(pixels(number, cost)) for number, cost in costs.items()]
    tower.gate.set()
    assert [value(job.future) for job in jobs] == [1, 4, 9, 16, 25, 36]
    assert tower.batches == [[0], [3, 5, 1], [2], [6], [4]]


def halves(whole: Pixels) -> list[Pixels]:
    """Two pieces: the number and, for odd ones, what the tower cannot see; for even ones the number again."""
    number = int(whole.tensors["number"])
    return [pixels(number, whole.cost // 2), pixels(13 if number % 2 else number, whole.cost // 2)]


@pytest.fixture
def splitting(tower: StoppableTower, metrics: Metrics) -> Iterator[Batcher]:
    batcher = Batcher(tower, ONE_PIECE, metrics, split=halves)
    yield batcher
    tower.gate.set()
    batcher.close()


def test_pieces_of_a_picture_are_joined(splitting: Batcher, tower: StoppableTower, metrics: Metrics) -> None:
    tower.gate.set()
    assert splitting.submit(pixels(4, 20)).future.result(PATIENCE_S).array.tolist() == [[16], [16]]
    assert tower.batches == [[4], [4]]
    snapshot = metrics.snapshot()
    assert [snapshot[f"vision_encoder_tower_{what}"] for what in ("batches", "images", "patches")] == [2, 1, 20]


def test_a_small_picture_goes_between_two_pieces_of_a_large_one(splitting: Batcher, tower: StoppableTower) -> None:
    large = splitting.submit(pixels(4, 200))
    assert tower.entered.acquire(timeout=PATIENCE_S)
    small = splitting.submit(pixels(2, 20))
    assert (splitting.num_waiting, splitting.num_running) == (1, 1)
    tower.gate.set()
    assert value(small.future) == 4
    assert value(large.future) == 16
    assert tower.batches == [[4], [2], [2], [4]]


def test_a_picture_with_one_bad_piece_fails_as_a_whole(splitting: Batcher, tower: StoppableTower) -> None:
    tower.gate.set()
    with pytest.raises(InvalidImage):
        splitting.submit(pixels(3, 20)).future.result(PATIENCE_S)
    assert value(splitting.submit(pixels(2, 20)).future) == 4


def test_after_a_bad_piece_the_others_are_let_go(tower: StoppableTower, metrics: Metrics) -> None:
    def thirds(whole: Pixels) -> list[Pixels]:
        number = int(whole.tensors["number"])
        return [pixels(13 if number == 1 else number), pixels(number), pixels(number)]

    batcher = Batcher(tower, PassLimits(max_images=2, max_patches=2), metrics, split=thirds)
    tower.gate.set()
    with pytest.raises(InvalidImage):
        batcher.submit(pixels(1)).future.result(PATIENCE_S)
    assert value(batcher.submit(pixels(2)).future) == 4
    batcher.close()
    assert tower.batches == [[13, 1], [13], [2, 2], [2]]


def test_closing_refuses_a_picture_between_two_pieces(splitting: Batcher, tower: StoppableTower) -> None:
    job = splitting.submit(pixels(4, 20))
    assert tower.entered.acquire(timeout=PATIENCE_S)
    splitting._end("over")
    tower.gate.set()
    with pytest.raises(PartUnavailable, match="stopped"):
        job.future.result(PATIENCE_S)


def test_only_the_guilty_fails(batcher: Batcher, tower: StoppableTower, metrics: Metrics) -> None:
    hold(batcher, tower)
    jobs = [batcher.submit(pixels(number)) for number in (1, 13, 2, 3)]
    tower.gate.set()
    with pytest.raises(InvalidImage, match="could not be read by the vision tower"):
        jobs[1].future.result(PATIENCE_S)
    assert [value(jobs[index].future) for index in (0, 2, 3)] == [1, 4, 9]
    assert tower.batches == [[0], [1, 13, 2, 3], [1], [13], [2], [3]]
    assert metrics.snapshot()["vision_encoder_tower_images"] == 4
    assert value(batcher.submit(pixels(5)).future) == 25


def test_cancelled_pictures_are_let_go_at_once(batcher: Batcher, tower: StoppableTower) -> None:
    hold(batcher, tower)
    jobs = [batcher.submit(pixels(number)) for number in (1, 2)]
    assert jobs[0].future.cancel()
    assert batcher.num_waiting == 1
    tower.gate.set()
    assert value(jobs[1].future) == 4
    assert tower.batches == [[0], [2]]


def test_what_has_begun_cannot_be_cancelled(batcher: Batcher, tower: StoppableTower) -> None:
    job = batcher.submit(pixels(3))
    assert tower.entered.acquire(timeout=PATIENCE_S)
    assert not job.future.cancel()
    tower.gate.set()
    assert value(job.future) == 9


def test_closing_refuses_what_waits_and_finishes_what_runs(batcher: Batcher, tower: StoppableTower) -> None:
    running = batcher.submit(pixels(3))
    assert tower.entered.acquire(timeout=PATIENCE_S)
    waiting = [batcher.submit(pixels(number)) for number in (4, 5)]
    cancelled = waiting.pop()
    cancelled.future.cancel()
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with batcher._changed:
        assert batcher._changed.wait_for(lambda: batcher.closing is not None, PATIENCE_S)
    tower.gate.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert value(running.future) == 9
    with pytest.raises(PartUnavailable, match="stopped"):
        waiting[0].future.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        cancelled.future.result()
    with pytest.raises(PartUnavailable, match="stopped"):
        batcher.submit(pixels(6))


def test_nobody_waits_for_a_thread_that_cannot_start(
    tower: StoppableTower, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: died.set())

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        assert started.wait(PATIENCE_S)
        raise ImportError("no torch")
        yield

    batcher = Batcher(tower, LIMITS, metrics, broken)
    job = batcher.submit(pixels(1))
    started.set()
    with pytest.raises(PartUnavailable, match="stopped"):
        job.future.result(PATIENCE_S)
    assert died.wait(PATIENCE_S)
    assert batcher.closing == "the thread of a vision tower has ended"


def test_a_thread_that_dies_answers_everybody(
    batcher: Batcher, tower: StoppableTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: died.set())
    assert batcher.closing is None
    hold(batcher, tower)
    jobs = [batcher.submit(pixels(number)) for number in (1, 2, 3, 666, 4)]
    tower.gate.set()
    for job in jobs:
        with pytest.raises(PartUnavailable, match="stopped"):
            job.future.result(PATIENCE_S)
    assert died.wait(PATIENCE_S)
    assert batcher.closing == "the thread of a vision tower has ended"
    with pytest.raises(PartUnavailable, match="stopped"):
        batcher.submit(pixels(5))


def test_a_device_that_failed_ends_it(batcher: Batcher, tower: StoppableTower) -> None:
    hold(batcher, tower)
    jobs = [batcher.submit(pixels(number)) for number in (1, 2, 3, 99, 4)]
    tower.gate.set()
    with pytest.raises(PartUnavailable, match="the vision tower's device failed"):
        jobs[3].future.result(PATIENCE_S)
    assert batcher.closing == "the device of a vision tower failed for good"
    assert "misaligned address" in batcher.fault
    with pytest.raises(PartUnavailable, match="stopped"):
        jobs[4].future.result(PATIENCE_S)
    with pytest.raises(PartUnavailable, match="stopped"):
        batcher.submit(pixels(5))
    batcher.close()
    assert batcher.closing == "the device of a vision tower failed for good"


def test_the_thread_works_inside_its_context(tower: StoppableTower, metrics: Metrics) -> None:
    names: list[str] = []

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        names.append(threading.current_thread().name)
        yield
        names.append("left")

    batcher = Batcher(tower, LIMITS, metrics, context)
    batcher.close()
    assert names == ["tower", "left"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("shape"), InvalidImage),
        (MemoryError(), Overloaded),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 10 bytes"), Overloaded),
        (PartUnavailable("gone"), PartUnavailable),
    ],
)
def test_whose_fault_it_is(error: Exception, answer: type[Exception]) -> None:
    assert type(blame(error)) is answer


def test_pace_follows_what_is_measured() -> None:
    pace = Pace()
    assert pace.seconds_per_image == 0
    pace.observe(2.0, 4)
    assert pace.seconds_per_image == 0.5
    pace.observe(1.5, 1)
    assert pace.seconds_per_image == pytest.approx(0.7)
