"""One thread that owns one tower: it takes what waits, as much as fits, whenever it becomes free, and isolates pictures
that fail.

No timer: a lone picture never waits for company, and company gathers by itself while the tower is busy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import accumulate, islice

from deployments.errors import InvalidImage, Overloaded, PartUnavailable, RetinaError
from deployments.metrics import Metrics
from deployments.models.family import Pixels
from deployments.vision_encoder.cache import Features

RunTower = Callable[[Sequence[Pixels]], list[Features]]

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Job:
    pixels: Pixels
    future: Future[Features] = field(default_factory=Future)  # cancel() works until the tower has begun


class Pace:
    """Seconds that one picture takes, smoothed over the last few."""

    def __init__(self) -> None:
        self.seconds_per_image = 0.0  # 0: not measured yet

    def observe(self, seconds: float, num_images: int) -> None:
        measured = seconds / num_images
        self.seconds_per_image = 0.8 * self.seconds_per_image + 0.2 * measured if self.seconds_per_image else measured


def num_that_fit(costs: Iterable[int], max_images: int, max_cost: int) -> int:
    """How many of the first pictures make a batch within both limits; the first alone may exceed the second."""
    totals = accumulate(islice(costs, max_images))
    return sum(1 for number, total in enumerate(totals) if number == 0 or total <= max_cost)


class Batcher:
    """`run_tower` is called in one thread only, inside `thread_context`, with what `num_that_fit` lets through."""

    def __init__(
        self,
        run_tower: RunTower,
        max_batch_images: int,
        max_batch_patches: int,
        metrics: Metrics,
        thread_context: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._run_tower = run_tower
        self._max_batch_images = max_batch_images
        self._max_batch_patches = max_batch_patches
        self._metrics = metrics
        self._thread_context = thread_context
        self._changed = threading.Condition()  # guards the two below
        self._waiting: deque[Job] = deque()
        self.closing: str | None = None  # why nothing is taken any more, for good; None while all is well
        self.num_running = 0  # pictures in the tower now
        self.pace = Pace()
        self.fault = ""  # what the device said when it failed for good; "" while it works
        self._thread = threading.Thread(target=self._serve, name="tower", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, pixels: Pixels) -> Job:
        """Line up a picture; its future gets features, or a RetinaError. Raises PartUnavailable while `closing`."""
        job = Job(pixels)
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)
        with self._changed:
            if self.closing is not None:
                raise _stopped()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """Refuse what waits, finish the batch that runs. Blocks until then."""
        self._end("the vision encoder has stopped")
        self._thread.join()

    def _end(self, reason: str) -> None:
        """Let the thread end; the first reason stays."""
        with self._changed:
            self.closing = self.closing or reason
            self._changed.notify()

    def _serve(self) -> None:
        try:
            with self._thread_context():
                while self.closing is None:
                    self._run(self._take())
        finally:
            # Also when the thread dies of something unforeseen: nobody may wait for it for ever.
            with self._changed:
                self.closing = self.closing or "the thread of a vision tower has ended"
                left = [job for job in self._waiting if job.future.set_running_or_notify_cancel()]
                self._waiting.clear()
            for job in left:
                job.future.set_exception(_stopped())

    def _take(self) -> list[Job]:
        """Wait for pictures, then take as many as fit; none when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.closing is not None)
            if self.closing is not None:
                return []
            costs = (job.pixels.cost for job in self._waiting)
            num_taken = num_that_fit(costs, self._max_batch_images, self._max_batch_patches)
            taken = [self._waiting.popleft() for _ in range(num_taken)]
        return [job for job in taken if job.future.set_running_or_notify_cancel()]

    def _run(self, batch: list[Job]) -> None:
        self.num_running = len(batch)
        try:
            self._encode(batch)
        finally:
            self.num_running = 0
            for job in batch:
                if not job.future.done():  # something unforeseen ends the thread
                    job.future.set_exception(_stopped())

    def _encode(self, batch: list[Job]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            results = self._run_tower([job.pixels for job in batch])
        except Exception as error:  # whatever a tower raises must not end the thread, and is answered to someone below
            self._isolate(batch, error)
            return
        self.pace.observe(time.perf_counter() - started, len(batch))
        self._metrics.count("vision_encoder_tower_batches")
        self._metrics.count("vision_encoder_tower_images", len(batch))
        for job, features in zip(batch, results, strict=True):
            job.future.set_result(features)

    def _isolate(self, batch: list[Job], error: Exception) -> None:
        """Run the members of a failed batch one by one, so that only the guilty fails."""
        logger.warning("the tower failed on a batch of %d", len(batch), exc_info=error)
        if len(batch) > 1:
            for job in batch:
                self._encode([job])
            return
        answer = blame(error)
        if isinstance(answer, PartUnavailable):
            self.fault = repr(error)
            self._end("the device of a vision tower failed for good")
        batch[0].future.set_exception(answer)

    def _forget(self, job: Job) -> None:
        """Let go of the pixels of a cancelled job at once, not only when its turn comes."""
        with self._changed, contextlib.suppress(ValueError):  # the thread may have taken it
            self._waiting.remove(job)


def blame(error: Exception) -> RetinaError:
    """Whose fault it is when the tower fails on a single picture: the machine's, or the picture's."""
    if isinstance(error, RetinaError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names or "allocate memory" in str(error):
        answer: RetinaError = Overloaded("the vision tower ran out of memory", None, 1.0)
    elif "AcceleratorError" in names:  # by name: torch is not imported here
        answer = PartUnavailable("the vision tower's device failed", None, 5.0)
    else:
        answer = InvalidImage("the picture could not be read by the vision tower", "image")
    answer.__cause__ = error
    return answer


def _stopped() -> PartUnavailable:
    return PartUnavailable("the vision encoder has stopped", None, 5.0)
