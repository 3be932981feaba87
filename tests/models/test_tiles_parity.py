"""On thousands of sizes and several geometries our tiling is that of transformers' image processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.errors import InvalidImage
from deployments.models.tiles import Tiling

pytestmark = pytest.mark.torch

GEOMETRIES = [(384, 1536), (512, 2048), (364, 1456), (384, 2048), (58, 232), (49, 98), (49, 49), (500, 6000), (33, 331)]


def grid_of_processor(width: int, height: int, tile: int, longest: int, splits: bool) -> tuple[int, int]:
    """The image processor's own way with sizes; a resize gives a picture without memory behind it."""
    from transformers.image_processing_backends import PilBackend
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest}, max_image_size={"longest_edge": tile}, do_image_splitting=splits
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PilBackend, "resize", lambda _self, _image, size, **_: flat(size.width, size.height))
        batch = processor(
            [[flat(width, height)]],
            input_data_format="channels_first",
            do_convert_rgb=False,
            do_rescale=False,
            do_normalize=False,
            do_pad=False,
            return_row_col_info=True,
        )
    return batch["rows"][0][0], batch["cols"][0][0]


def flat(width: int, height: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (3, height, width))


sides = st.one_of(st.integers(1, 64), st.integers(1, 5000), st.integers(1, 50_000))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(width=sides, height=sides, geometry=st.sampled_from(GEOMETRIES))
@example(width=1, height=1000, geometry=(49, 49))
@example(width=1, height=10_000, geometry=(384, 1536))
@example(width=50_000, height=1, geometry=(500, 6000))
def test_any_size_is_cut_as_the_image_processor_cuts_it(width: int, height: int, geometry: tuple[int, int]) -> None:
    tile, longest = geometry
    tiling = Tiling(tile, patch_px=1, shuffle=1, longest_side_px=longest, splits=True)
    try:
        expected = grid_of_processor(width, height, tile, longest, splits=True)
    except ValueError:
        with pytest.raises(InvalidImage):
            tiling.grid(width, height)
        return
    assert tiling.grid(width, height) == expected


@pytest.mark.parametrize("geometry", [(384, 1536), (512, 2048)])
def test_all_small_sizes(geometry: tuple[int, int]) -> None:
    tile, longest = geometry
    tiling = Tiling(tile, patch_px=1, shuffle=1, longest_side_px=longest, splits=True)
    for width in range(1, 33):
        for height in range(1, 33):
            assert tiling.grid(width, height) == grid_of_processor(width, height, tile, longest, splits=True)


def test_without_splitting_nothing_is_cut() -> None:
    for size in [(1, 1), (10_000, 1), (1, 10_000), (640, 480)]:
        assert grid_of_processor(*size, 64, 64, splits=False) == (0, 0)
        assert Tiling(64, 8, 2, 64, splits=False).grid(*size) == (0, 0)
