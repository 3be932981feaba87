"""How SmolVLM's image processor cuts a picture of a given size into tiles: arithmetic alone, no pixels.

The prompt must hold the right number of image tokens before anybody has looked at the picture. transformers has
`get_number_of_image_patches` for that, but it disagrees with its own image processor on some sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from deployments.errors import ConfigError, InvalidImage

MAX_SIDE_PX = 4096  # transformers' own bound on the resized picture


@dataclass(frozen=True, slots=True)
class Tiling:
    tile_px: int  # side of a tile
    patch_px: int  # side of a patch; tile_px need not be a multiple
    shuffle: int  # the connector folds shuffle x shuffle patches into one token
    longest_side_px: int  # a picture is brought to this before it is cut
    splits: bool  # False: every picture is one tile

    @property
    def patches_per_tile(self) -> int:
        return (self.tile_px // self.patch_px) ** 2

    @property
    def tokens_per_tile(self) -> int:
        return self.patches_per_tile // self.shuffle**2

    def limited_to(self, max_image_tokens: int) -> Tiling:
        """The same for smaller pictures, such that none becomes more tokens.

        Raises ConfigError where that is less than a tile, which every picture takes.
        """
        num_tiles = max_image_tokens // self.tokens_per_tile
        if num_tiles < 1:
            raise ConfigError(
                f"max_image_tokens is {max_image_tokens}; a picture needs at least {self.tokens_per_tile}",
                param="max_image_tokens",
            )
        per_side = max(1, math.isqrt(num_tiles - 1))  # one tile shows the whole picture
        side = per_side * self.tile_px
        side -= side % 2  # else the shorter side of a square would grow beyond it, see _to_longest
        return replace(self, longest_side_px=min(self.longest_side_px, side))

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles that the picture is cut into; (0, 0) where it is not cut.

        Raises InvalidImage for a picture too thin to be cut.
        """
        if not self.splits:
            return 0, 0
        wide, high = self._to_tiles(*_within_bound(*_to_longest(width, height, self.longest_side_px)))
        if not (wide and high):
            raise InvalidImage(f"a picture of {width} x {height} pixels is too thin for this model", "image")
        return (0, 0) if (wide, high) == (1, 1) else (high, wide)

    def _to_tiles(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows: the longer side is rounded up to tiles, the other follows the ratio and is rounded up."""
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / self.tile_px)
            return columns, math.ceil(int(columns * self.tile_px / ratio) / self.tile_px)
        rows = math.ceil(height / self.tile_px)
        return math.ceil(int(rows * self.tile_px * ratio) / self.tile_px), rows


# The roundings below are the image processor's, float for float: each `int` cuts, odd shorter sides grow by one.


def _to_longest(width: int, height: int, longest: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height:
        return longest, max(_to_even(int(longest / ratio)), 1)
    return max(_to_even(int(longest * ratio)), 1), longest


def _to_even(side: int) -> int:
    return side + side % 2


def _within_bound(width: int, height: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height and width > MAX_SIDE_PX:
        return MAX_SIDE_PX, max(int(MAX_SIDE_PX / ratio), 1)
    if height > width and height > MAX_SIDE_PX:
        return max(int(MAX_SIDE_PX * ratio), 1), MAX_SIDE_PX
    return width, height
