"""The line before a tower: what makes a pass, whose turn it is, and that nobody waits for ever."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.models.family import Pixels
from deployments.vision_encoder.cache import freeze
from deployments.vision_encoder.line import ONE_PIECE, Job, Line, PassLimits, join, num_that_fit

LIMITS = PassLimits(max_images=4, max_patches=100)
TILE = 10  # patches


def job(*costs: int) -> Job:
    return Job(deque(Pixels({}, cost, num_tokens=1) for cost in costs))


def lined_up(limits: PassLimits, *jobs: Job) -> Line:
    line = Line(limits)
    for each in jobs:
        line.add(each)
    return line


def run_one(line: Line) -> Job:
    """The job whose single piece is next, once that piece has been through the tower."""
    [piece] = line.take()
    piece.job.accept(freeze(np.zeros((1, 2), np.float32), "float32"))
    return piece.job


@pytest.mark.parametrize(
    ("costs", "number"),
    [
        ([], 0),
        ([1, 1], 2),
        ([1] * 6, 4),
        ([60, 40, 1], 2),  # just full
        ([60, 41, 1], 1),  # in order: the small one behind it does not overtake
        ([99, 1, 1], 2),
        ([500, 1], 1),  # alone it may be larger
        ([1, 500], 1),
    ],
)
def test_how_many_pictures_make_a_pass(costs: list[int], number: int) -> None:
    assert num_that_fit(list(enumerate(costs)), LIMITS) == number


@pytest.mark.parametrize(
    ("waiting", "number"),
    [
        ([("a", 10)] * 9, 9),  # many tiles are one picture
        ([("a", 30)] * 9, 3),  # as many tiles as fit
        ([("a", 10)] * 3 + [("b", 10)] * 3 + [("c", 10), ("d", 10), ("e", 10)], 8),
    ],
)
def test_a_pass_holds_tiles_of_some_pictures(waiting: list[tuple[str, int]], number: int) -> None:
    assert num_that_fit([(ord(name), cost) for name, cost in waiting], LIMITS) == number


def test_one_piece_at_a_time() -> None:
    line = lined_up(ONE_PIECE, job(10, 10), job(20))
    assert [len(line.take()) for _ in range(4)] == [1, 1, 1, 0]


def test_equal_pictures_keep_their_order() -> None:
    jobs = [job(TILE) for _ in range(6)]
    line = lined_up(ONE_PIECE, *jobs)
    assert [run_one(line) for _ in jobs] == jobs


def test_a_picture_of_one_tile_passes_one_of_five_between_two_tiles() -> None:
    large = job(*[TILE] * 5)
    line = lined_up(ONE_PIECE, large)
    assert run_one(line) is large
    small = job(TILE)
    line.add(small)
    assert run_one(line) is small
    assert [run_one(line) for _ in range(4)] == [large] * 4
    assert large.future.done()


def test_a_stream_of_small_pictures_does_not_hold_up_a_large_one_for_ever() -> None:
    large = job(*[TILE] * 5)
    line = lined_up(ONE_PIECE, large)
    seen = []
    while not large.future.done():
        line.add(job(TILE))
        seen.append(run_one(line))
    assert len(seen) == 2 * 5 - 1, "as much of others' work as its own, save the last tile, which is due with theirs"


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=12), st.integers(1, 20))
def test_nobody_is_lost_and_passes_stay_within_limits(pictures: list[list[int]], max_patches: int) -> None:
    jobs = [job(*costs) for costs in pictures]
    line = lined_up(PassLimits(3, max_patches), *jobs)
    while line:
        taken = line.take()
        assert taken
        assert len(taken) == 1 or sum(piece.pixels.cost for piece in taken) <= max_patches
        assert len({piece.job for piece in taken}) <= 3
        for piece in taken:
            piece.job.accept(freeze(np.zeros((1, 2), np.float32), "float32"))
    assert all(each.future.result(0).array.shape == (len(each.seen), 2) for each in jobs)


def test_who_cancelled_is_left_out_and_who_has_begun_stays() -> None:
    begun, cancelled, other = job(TILE, TILE), job(TILE, TILE), job(TILE, TILE, TILE)
    line = lined_up(ONE_PIECE, begun)
    run_one(line)
    assert line.num_not_begun == 0
    line.add(cancelled)
    line.add(other)
    assert line.num_not_begun == 2
    assert not begun.future.cancel()
    assert cancelled.future.cancel()
    assert run_one(line) is begun
    assert line.take() == [], "whoever removes cancelled pictures has not come to it yet"
    assert [run_one(line) for _ in range(3)] == [other] * 3
    line.remove(other)  # no longer there
    assert not line


def test_who_is_left_at_the_end() -> None:
    begun, cancelled, waiting = job(TILE, TILE), job(TILE), job(TILE)
    line = lined_up(ONE_PIECE, begun)
    run_one(line)
    line.add(cancelled)
    line.add(waiting)
    cancelled.future.cancel()
    assert set(line.clear()) == {begun, waiting}
    assert len(line) == 0


def test_features_of_pieces_are_joined_in_order_and_those_of_one_are_not_copied() -> None:
    first, second = (freeze(np.full((rows, 2), rows, np.uint16), "bfloat16") for rows in (1, 2))
    joined = join([first, second])
    assert (joined.array.tolist(), joined.dtype) == ([[1, 1], [2, 2], [2, 2]], "bfloat16")
    assert not joined.array.flags.writeable
    assert join([first]) is first
