"""Smaller pictures for those who ask for less detail. Everything here blocks: call it in a thread."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from deployments.config import ImageConfig
from deployments.images.check import check_num_bytes
from deployments.images.decode import decode_picture


def scale_down(data: bytes, max_side_px: int, limits: ImageConfig) -> bytes:
    """The upright picture as PNG, its longer side `max_side_px`; `data` itself where that is no longer already.

    The same data give the same bytes, so that the small picture is known again. Raises UnsupportedImage,
    ImageTooLarge, InvalidImage.
    """
    check_num_bytes(data, limits)
    picture = decode_picture(data, limits)
    longer = max(picture.size)
    if longer <= max_side_px:
        return data
    width, height = (max(1, round(side * max_side_px / longer)) for side in picture.size)
    file = BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(file, "PNG")
    return file.getvalue()
