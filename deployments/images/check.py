"""From uploaded bytes to a safe picture and its id: cheap checks on the header first, then one whole decode.

Neither the client's file name nor its media type plays a part; the content alone decides. Everything here blocks:
call it in a thread.
"""

from __future__ import annotations

import hashlib
import hmac

from PIL import Image

from deployments.config import ImageConfig
from deployments.errors import ImageTooLarge, InvalidImage
from deployments.images.decode import SWAPS_SIDES, open_header, orientation_of, read_pixels, reading
from deployments.images.formats import sniff
from deployments.types import ImageRef, StoredImage


def check_image(data: bytes, limits: ImageConfig, secret: bytes) -> StoredImage:
    """The picture that may be stored, with its id under the tenant's `secret`.

    Raises UnsupportedImage, ImageTooLarge and InvalidImage. Blocks for as long as decoding takes.
    """
    check_num_bytes(data, limits)
    format = sniff(data, limits.formats)
    with reading(format.name), open_header(data, format, limits) as picture:
        width, height = _verify(picture)
    ref = ImageRef(
        id=image_id_of(data, secret),
        width=width,
        height=height,
        num_bytes=len(data),
        media_type=format.media_type,
    )
    return StoredImage(ref, data)


def image_id_of(data: bytes, secret: bytes) -> str:
    """Of these bytes, whatever they are."""
    return hmac.new(secret, data, hashlib.sha256).hexdigest()


def check_num_bytes(data: bytes, limits: ImageConfig) -> None:
    if not data:
        raise InvalidImage("the picture is empty (0 bytes)", "image")
    if len(data) > limits.max_image_bytes:
        raise ImageTooLarge(f"the picture has {len(data)} bytes; at most {limits.max_image_bytes} are allowed", "image")


def _verify(picture: Image.Image) -> tuple[int, int]:
    """Decode to the last row, so that truncated data is refused now; returns the upright size."""
    width, height = picture.size
    # JPEG only: decode at an eighth of each side. It still reads the whole stream, at a fraction of the time.
    picture.draft(None, (max(1, width // 8), max(1, height // 8)))
    read_pixels(picture)
    return (height, width) if orientation_of(picture) in SWAPS_SIDES else (width, height)
