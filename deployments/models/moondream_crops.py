"""Cuts pictures into Moondream's crops: the whole one small, and overlapping ones that keep its detail. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from deployments.models.moondream_config import VisionSizes


@dataclass(frozen=True, slots=True)
class Crops:
    pixels: np.ndarray  # uint8 (1 + rows * columns, crop, crop, 3): the whole picture first, then the others by row
    tiling: tuple[int, int]  # rows, columns


def cut_crops(picture: Image.Image, sizes: VisionSizes) -> Crops:
    """`picture` is RGB. Its shape is not kept: it is stretched to fill whole crops."""
    crop, window, margin = sizes.crop_size, window_of(sizes), margin_of(sizes)
    rows, columns = choose_tiling(picture.width - 2 * margin, picture.height - 2 * margin, window, sizes.max_crops)
    filled = (columns * window + 2 * margin, rows * window + 2 * margin)
    detailed = np.asarray(picture.resize(filled, Image.Resampling.LANCZOS))
    pixels = np.empty((1 + rows * columns, crop, crop, 3), dtype=np.uint8)
    pixels[0] = np.asarray(picture.resize((crop, crop), Image.Resampling.LANCZOS))
    for index in range(rows * columns):
        top, left = index // columns * window, index % columns * window
        pixels[1 + index] = detailed[top : top + crop, left : left + crop]
    return Crops(pixels, (rows, columns))


def window_of(sizes: VisionSizes) -> int:
    """Pixels from one crop to the next."""
    return (sizes.grid - 2 * sizes.overlap_margin) * sizes.enc_patch_size


def margin_of(sizes: VisionSizes) -> int:
    """Pixels by which a crop reaches beyond its window on each side."""
    return sizes.overlap_margin * sizes.enc_patch_size


def choose_tiling(width: int, height: int, window: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns of windows for a picture of this size, its margins left out.

    As many as keep all detail, or more in the picture's proportions, up to `max_crops`. Pictures that would need more
    than these get fewer by the same share in both directions. One row or column remains, though, so very long ones get
    more than `max_crops` after all: so it was published, and features differ otherwise.
    """
    if width <= window or height <= window:
        return 1, 1
    least_rows, least_columns = math.ceil(height / window), math.ceil(width / window)
    if least_rows * least_columns > max_crops:
        share = math.sqrt(max_crops / (least_rows * least_columns))
        return max(1, math.floor(least_rows * share)), max(1, math.floor(least_columns * share))
    rows = max(least_rows, math.floor(math.sqrt(max_crops * height / width)))
    columns = max(least_columns, math.floor(math.sqrt(max_crops * width / height)))
    if rows * columns > max_crops:
        if columns > rows:
            columns = max_crops // rows
        else:
            rows = max_crops // columns
    return max(1, rows), max(1, columns)
