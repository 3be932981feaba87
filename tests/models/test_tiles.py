"""The tiling of a picture follows from its size alone, as the image processor would do it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import ConfigError, InvalidImage
from deployments.models.tiles import Tiling

INSTRUCT = Tiling(tile_px=384, patch_px=14, shuffle=3, longest_side_px=1536, splits=True)
SMALL = Tiling(tile_px=512, patch_px=16, shuffle=4, longest_side_px=2048, splits=True)
WHOLE = Tiling(tile_px=64, patch_px=8, shuffle=2, longest_side_px=64, splits=False)


def test_tokens_per_tile_of_the_published_checkpoints() -> None:
    assert (INSTRUCT.tokens_per_tile, SMALL.tokens_per_tile, WHOLE.tokens_per_tile) == (81, 64, 16)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((224, 224), (4, 4)),
        ((1024, 768), (3, 4)),
        ((768, 1024), (4, 3)),
        ((1, 1), (4, 4)),
        ((10_000, 1), (1, 4)),
        ((1, 10_000), (4, 1)),
    ],
)
def test_grids_of_the_published_geometries(size: tuple[int, int], grid: tuple[int, int]) -> None:
    for tiling in (INSTRUCT, SMALL):
        assert tiling.grid(*size) == grid


def test_one_tile_is_not_cut() -> None:
    once = Tiling(tile_px=64, patch_px=16, shuffle=2, longest_side_px=64, splits=True)
    assert once.grid(300, 200) == (0, 0)
    assert WHOLE.grid(10_000, 1) == (0, 0)


def test_too_thin_to_be_cut_is_the_pictures_fault() -> None:
    # 49 * (1 / 49) is below 1 in floating point, and the image processor cuts it to a width of nothing.
    with pytest.raises(InvalidImage, match=r"1 x 1000 .* too thin"):
        Tiling(tile_px=49, patch_px=7, shuffle=1, longest_side_px=49, splits=True).grid(1, 1000)


@given(
    tiling=st.sampled_from([INSTRUCT, SMALL, WHOLE, Tiling(29, 7, 2, 116, splits=True)]),
    num_tiles=st.integers(1, 40),
    width=st.integers(1, 5000),
    ratio=st.floats(0.1, 10),
)
def test_no_picture_becomes_more_tokens_than_the_limit(
    tiling: Tiling, num_tiles: int, width: int, ratio: float
) -> None:
    limited = tiling.limited_to(num_tiles * tiling.tokens_per_tile)
    rows, columns = limited.grid(width, max(1, round(width * ratio)))
    assert rows * columns + 1 <= num_tiles
    if tiling.splits and num_tiles > 4:  # and a square uses it up, as far as tiles in a square can
        side = min(math.isqrt(num_tiles - 1), 4)
        assert limited.grid(width, width) == (side, side)


def test_the_limit_is_a_tile_at_least() -> None:
    with pytest.raises(ConfigError, match="max_image_tokens is 80; a picture needs at least 81"):
        INSTRUCT.limited_to(80)
