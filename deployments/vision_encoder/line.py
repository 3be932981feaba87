"""The line before a tower: pieces of pictures, and which of them go through next. No threads, no clock, no torch.

Each picture is due once the tower has done as much work since it came as the picture itself costs. So equal pictures
keep their order, a picture of one tile passes one of five between two of its tiles, and nobody waits longer than for
what was there before, and as much again as the own picture costs.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from deployments.models.family import Pixels
from deployments.vision_encoder.cache import Features, freeze


@dataclass(eq=False, slots=True)
class Job:
    """One picture. Its future gets features, or a RetinaError; cancel() works until the tower has begun."""

    pieces: deque[Pixels]  # not begun yet, by row of the features
    future: Future[Features] = field(default_factory=Future)
    seen: list[Features] = field(default_factory=list)  # of the pieces that are done
    due: int = 0  # by the tower's work, see above; set as it lines up
    cost: int = field(init=False)  # patches of all pieces
    num_pieces: int = field(init=False)

    def __post_init__(self) -> None:
        self.cost = sum(piece.cost for piece in self.pieces)
        self.num_pieces = len(self.pieces)

    def accept(self, features: Features) -> None:
        """What the tower saw in the next piece; the last one completes the picture."""
        self.seen.append(features)
        if len(self.seen) == self.num_pieces:
            self.future.set_result(join(self.seen))


@dataclass(frozen=True, slots=True)
class Piece:
    job: Job
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class PassLimits:
    """Of one pass through a tower. The first piece goes in any case."""

    max_images: int  # pictures that have a piece in it
    max_patches: int


ONE_PIECE = PassLimits(max_images=1, max_patches=0)


class Line:
    def __init__(self, limits: PassLimits) -> None:
        self._limits = limits
        self._jobs: list[Job] = []  # with pieces left, by what is due first
        self._work = 0  # patches that have gone through so far

    def __len__(self) -> int:
        """Pictures with pieces that wait."""
        return len(self._jobs)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    @property
    def num_not_begun(self) -> int:
        return sum(len(job.pieces) == job.num_pieces for job in self._jobs)

    def add(self, job: Job) -> None:
        job.due = self._work + job.cost
        insort(self._jobs, job, key=lambda each: each.due)

    def remove(self, job: Job) -> None:
        """Also when it is no longer there."""
        if job in self._jobs:
            self._jobs.remove(job)

    def take(self) -> list[Piece]:
        """The next pass, without pictures that were cancelled meanwhile; none when nobody waits."""
        waiting = [Piece(job, pixels) for job in self._jobs for pixels in job.pieces]
        chosen = waiting[: num_that_fit([(id(piece.job), piece.pixels.cost) for piece in waiting], self._limits)]
        for piece in chosen:
            piece.job.pieces.popleft()
        cancelled = {job for job in {piece.job for piece in chosen} if not _begin(job)}
        taken = [piece for piece in chosen if piece.job not in cancelled]
        self._work += sum(piece.pixels.cost for piece in taken)
        self._jobs = [job for job in self._jobs if job.pieces and job not in cancelled]
        return taken

    def clear(self) -> list[Job]:
        """Who still waits for an answer."""
        left = [job for job in self._jobs if _begin(job)]
        self._jobs = []
        return left


def _begin(job: Job) -> bool:
    """From now on the picture cannot be cancelled; False when it was."""
    return job.future.running() or job.future.set_running_or_notify_cancel()


def num_that_fit(waiting: Sequence[tuple[int, int]], limits: PassLimits) -> int:
    """How many of the first pieces make a pass; each is (whose it is, patches), one picture's next to each other."""
    if not waiting:
        return 0
    num_images, num_patches = 1, waiting[0][1]
    for index, ((before, _), (picture, patches)) in enumerate(pairwise(waiting), start=1):
        num_images += picture != before
        num_patches += patches
        if num_images > limits.max_images or num_patches > limits.max_patches:
            return index
    return len(waiting)


def join(seen: Sequence[Features]) -> Features:
    """One picture's features from those of its pieces; of a single piece they are its own, uncopied."""
    if len(seen) == 1:
        return seen[0]
    return freeze(np.concatenate([features.array for features in seen]), seen[0].dtype)
