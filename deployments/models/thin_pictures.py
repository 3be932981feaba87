"""Resizes of very thin pictures only the middle, which is all that a square cut out of them will hold. Pillow alone.

An image processor resizes the short side and the long side with it, and cuts a square out of the middle then: a picture
of 1 x 10000 pixels would become gigabytes on the way.
"""

from __future__ import annotations

from PIL import Image

THIN = 100  # long side over short: thinner pictures are resized here
# Thinner than this, a picture loses its far ends first, and what is seen may shift by half a resized pixel. Up to it
# pixels are those of an image processor that resizes the whole.
MAX_ASPECT_RATIO = 1000
STRIP = 8  # columns that are stretched at once


def resize_middle(picture: Image.Image, edge: int, side: int, resample: int) -> Image.Image:
    """The middle of a thin picture with its short side at `edge` pixels, for a cut of side x side pixels.

    Other pictures come back as they are.
    """
    short, long = sorted(picture.size)
    if long <= THIN * short or edge <= short:  # what shrinks as a whole takes no memory that it had not before
        return picture
    picture = _without_far_ends(picture)
    width, height = picture.size
    length = int(edge * max(width, height) / min(width, height))  # as image processors round it
    # As even a distance from both ends as the cut has, however its side is rounded.
    kept = max(edge, side)
    kept += (length - kept) % 2
    first = (length - kept) // 2
    method = Image.Resampling(resample)
    # Pillow stretches rows first and columns then, so that both passes are the same one by one. (Where it shrinks, the
    # order hangs on the sizes.)
    if width > height:
        return (
            picture.resize((length, height), method).crop((first, 0, first + kept, height)).resize((kept, edge), method)
        )
    return _stretch_columns(picture.resize((edge, height), method), length, (first, first + kept), method)


def _without_far_ends(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    most = MAX_ASPECT_RATIO * min(width, height)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return picture.crop((left, top, width - left, height - top))


def _stretch_columns(picture: Image.Image, length: int, rows: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """The picture with a height of `length`, and of that only the rows from the first to before the second."""
    top, bottom = rows
    stretched = Image.new(picture.mode, (picture.width, bottom - top))
    for left in range(0, picture.width, STRIP):
        strip = picture.crop((left, 0, min(left + STRIP, picture.width), picture.height))
        whole = strip.resize((strip.width, length), method)
        stretched.paste(whole.crop((0, top, strip.width, bottom)), (left, 0))
    return stretched
