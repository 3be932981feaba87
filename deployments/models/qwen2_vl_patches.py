"""How Qwen2-VL's image processor scales a picture of a given size before it cuts patches: arithmetic alone, no pixels.

Resolution is dynamic: a picture keeps its shape and, within a budget of pixels, its size. A prompt must hold the right
number of image tokens before anybody has looked at the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deployments.errors import InvalidImage

MAX_ASPECT_RATIO = 200  # transformers' own bound; its image processor refuses thinner pictures


@dataclass(frozen=True, slots=True)
class Patching:
    patch_px: int  # side of a patch
    merge: int  # the tower folds merge x merge patches into one token
    min_pixels: int  # smaller pictures are scaled up
    max_pixels: int  # larger pictures are scaled down

    @property
    def token_px(self) -> int:
        """Side of the square that one token stands for."""
        return self.patch_px * self.merge

    def tokens(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tokens that the picture becomes.

        At most max_pixels / token_px**2 in all, save where that is below MAX_ASPECT_RATIO: a picture too thin for
        so small a budget becomes one row or column, longer than the budget. Raises InvalidImage for a picture that the
        image processor refuses.
        """
        if max(width, height) / min(width, height) > MAX_ASPECT_RATIO:
            raise InvalidImage(
                f"a picture of {width} x {height} pixels is too thin for this model: the longer side may be at most "
                f"{MAX_ASPECT_RATIO} times the shorter",
                "image",
            )
        # The roundings are the image processor's, float for float; `round` takes halves to the even side.
        px = self.token_px
        rows, columns = round(height / px), round(width / px)
        if rows * columns * px**2 > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            return max(1, math.floor(height / shrink / px)), max(1, math.floor(width / shrink / px))
        if rows * columns * px**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * grow / px), math.ceil(width * grow / px)
        return rows, columns
