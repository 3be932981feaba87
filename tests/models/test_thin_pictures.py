"""The middle of a thin picture is, byte for byte, the middle of the whole one resized."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.models.thin_pictures import MAX_ASPECT_RATIO, THIN, resize_middle

METHODS = [each.value for each in Image.Resampling]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def cut(picture: Image.Image, edge: int, side: int, method: int, *, is_wide: bool) -> np.ndarray:
    """As an image processor does: the short side to `edge`, then a square out of the middle (here: a band of it)."""
    long = int(edge * max(picture.size) / min(picture.size))
    size = (long, edge) if is_wide else (edge, long)
    resized = np.asarray(picture.resize(size, Image.Resampling(method)) if size != picture.size else picture)
    start = (long - side) // 2
    return resized[:, start : start + side] if is_wide else resized[start : start + side]


@settings(max_examples=60, deadline=None)
@given(
    short=st.integers(1, 5),
    ratio=st.floats(THIN + 1, 300),
    is_wide=st.booleans(),
    edge=st.integers(3, 20),
    side=st.integers(3, 20),
    method=st.sampled_from(METHODS),
)
def test_the_middle(short: int, ratio: float, is_wide: bool, edge: int, side: int, method: int) -> None:
    long = int(short * ratio) + 1
    picture = noise(long, short) if is_wide else noise(short, long)
    middle = resize_middle(picture, edge, side, method)
    if edge > short:
        assert max(middle.size) <= max(edge, side) + 1
        assert min(middle.size) == edge
    else:
        assert middle is picture
    # The middle goes through the same image processor, which resizes it no more.
    seen, expected = (cut(each, edge, side, method, is_wide=is_wide) for each in (middle, picture))
    np.testing.assert_array_equal(seen, expected)


def test_others_are_left_alone() -> None:
    for size in [(1, THIN), (THIN, 1), (300, 3), (64, 64)]:
        picture = noise(*size)
        assert resize_middle(picture, 10, 10, 3) is picture


@pytest.mark.parametrize("size", [(4 * MAX_ASPECT_RATIO, 1), (1, 4 * MAX_ASPECT_RATIO + 1)])
def test_far_ends_are_left_out(size: tuple[int, int]) -> None:
    whole = noise(*size)
    left, top = (max(0, each - MAX_ASPECT_RATIO) // 2 for each in size)
    middle = whole.crop((left, top, size[0] - left, size[1] - top))
    expected = resize_middle(middle, 10, 10, 3)
    np.testing.assert_array_equal(np.asarray(resize_middle(whole, 10, 10, 3)), np.asarray(expected))
    assert max(middle.size) in (MAX_ASPECT_RATIO, MAX_ASPECT_RATIO + 1)
