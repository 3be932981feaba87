"""Pictures that nobody has seen before: equal keys give equal bytes, other keys give other pictures."""

from __future__ import annotations

import io
import random

NUM_SHAPES = 12


def picture(key: str, side_px: int = 256) -> bytes:
    """A PNG of filled shapes on a plain background."""
    from PIL import Image, ImageDraw

    chance = random.Random(key)
    canvas = Image.new("RGB", (side_px, side_px), _colour(chance))
    pen = ImageDraw.Draw(canvas)
    for _ in range(NUM_SHAPES):
        radius = chance.randrange(side_px // 32, side_px // 4)
        x, y = chance.randrange(side_px), chance.randrange(side_px)
        draw = pen.ellipse if chance.random() < 0.5 else pen.rectangle
        draw((x - radius, y - radius, x + radius, y + radius), fill=_colour(chance))
    file = io.BytesIO()
    canvas.save(file, "PNG", compress_level=6)
    return file.getvalue()


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)
