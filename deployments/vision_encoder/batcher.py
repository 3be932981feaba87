"""One thread that owns one tower: whenever it becomes free it takes the next pass of the line, and isolates pictures
that fail.

No timer: a lone picture never waits for company, and company gathers by itself while the tower is busy.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from deployments.errors import InvalidImage, Overloaded, PartUnavailable, RetinaError
from deployments.metrics import Metrics
from deployments.models.family import Pixels
from deployments.vision_encoder.cache import Features
from deployments.vision_encoder.line import Job, Line, PassLimits, Piece

RunTower = Callable[[Sequence[Pixels]], list[Features]]
Split = Callable[[Pixels], Sequence[Pixels]]

logger = logging.getLogger(__name__)


class Pace:
    """Seconds that one picture takes, smoothed over the last few."""

    def __init__(self) -> None:
        self.seconds_per_image = 0.0  # 0: not measured yet

    def observe(self, seconds: float, num_images: float) -> None:
        measured = seconds / num_images
        self.seconds_per_image = 0.8 * self.seconds_per_image + 0.2 * measured if self.seconds_per_image else measured


def whole(pixels: Pixels) -> Sequence[Pixels]:
    return [pixels]


class Batcher:
    """`run_tower` is called in one thread only, inside `thread_context`, with one pass within `limits`.

    `split` cuts a picture into the pieces that may go through the tower apart.
    """

    def __init__(
        self,
        run_tower: RunTower,
        limits: PassLimits,
        metrics: Metrics,
        thread_context: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        split: Split = whole,
    ) -> None:
        self._run_tower = run_tower
        self._split = split
        self._metrics = metrics
        self._thread_context = thread_context
        self._changed = threading.Condition()  # guards the two below
        self._line = Line(limits)
        self.closing: str | None = None  # why nothing is taken any more, for good; None while all is well
        self.num_running = 0  # pictures in the tower now
        self.pace = Pace()
        self.fault = ""  # what the device said when it failed for good; "" while it works
        self._thread = threading.Thread(target=self._serve, name="tower", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Pictures of which the tower has seen nothing yet."""
        with self._changed:
            return self._line.num_not_begun

    def submit(self, pixels: Pixels) -> Job:
        """Line up a picture; its future gets features, or a RetinaError. Raises PartUnavailable while `closing`."""
        job = Job(deque(self._split(pixels)))
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)
        with self._changed:
            if self.closing is not None:
                raise _stopped()
            self._line.add(job)
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
                left = self._line.clear()
            for job in left:
                job.future.set_exception(_stopped())

    def _take(self) -> list[Piece]:
        """Wait for pictures, then take the next pass; none when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or self.closing is not None)
            return self._line.take() if self.closing is None else []

    def _run(self, taken: list[Piece]) -> None:
        jobs = {piece.job for piece in taken}
        self.num_running = len(jobs)
        try:
            self._encode(taken)
        except BaseException:  # something unforeseen ends the thread
            for job in jobs:
                self._refuse(job, _stopped())
            raise
        finally:
            self.num_running = 0

    def _encode(self, taken: list[Piece]) -> None:
        if not taken:
            return
        started = time.perf_counter()
        try:
            results = self._run_tower([piece.pixels for piece in taken])
        except Exception as error:  # whatever a tower raises must not end the thread, and is answered to someone below
            self._isolate(taken, error)
            return
        self.pace.observe(time.perf_counter() - started, sum(piece.pixels.cost / piece.job.cost for piece in taken))
        self._count(taken)
        for piece, features in zip(taken, results, strict=True):
            piece.job.accept(features)

    def _count(self, taken: list[Piece]) -> None:
        self._metrics.count("vision_encoder_tower_batches")
        self._metrics.count("vision_encoder_tower_patches", sum(piece.pixels.cost for piece in taken))
        run = Counter(piece.job for piece in taken)
        complete = [job for job, number in run.items() if len(job.seen) + number == job.num_pieces]
        self._metrics.count("vision_encoder_tower_images", len(complete))

    def _isolate(self, taken: list[Piece], error: Exception) -> None:
        """Run the pieces of a failed pass one by one, so that only the guilty picture fails."""
        logger.warning("the tower failed on a pass of %d pieces", len(taken), exc_info=error)
        if len(taken) > 1:
            for piece in taken:
                if not piece.job.future.done():  # by an earlier piece
                    self._encode([piece])
            return
        answer = blame(error)
        if isinstance(answer, PartUnavailable):
            self.fault = repr(error)
            self._end("the device of a vision tower failed for good")
        self._refuse(taken[0].job, answer)

    def _refuse(self, job: Job, error: RetinaError) -> None:
        """Answer a picture that has begun, and let go of its pieces that wait."""
        with self._changed:
            self._line.remove(job)
        if not job.future.done():
            job.future.set_exception(error)

    def _forget(self, job: Job) -> None:
        """Let go of the pixels of a cancelled job at once, not only when its turn comes."""
        with self._changed:
            self._line.remove(job)


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
