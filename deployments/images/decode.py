"""From stored bytes to an upright RGB picture, whatever mode the file was in; the one place where Pillow decodes.

Colour profiles (ICC) are ignored: numbers are taken as sRGB, as the models' own preprocessing does. Of an animation
the first frame counts. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from deployments.config import ImageConfig
from deployments.errors import ImageTooLarge, InvalidImage, RetinaError, UnsupportedImage
from deployments.images.formats import Format, sniff

TURN_BY_ORIENTATION = {  # EXIF tag 274: what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES = frozenset({5, 6, 7, 8})
SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
MODES = EIGHT_BIT_MODES | SIXTEEN_BIT_MODES | {"I", "F"}

logger = logging.getLogger(__name__)


def decode_picture(data: bytes, limits: ImageConfig) -> Image.Image:
    """RGB, upright, transparency on white. Raises UnsupportedImage, ImageTooLarge, InvalidImage.

    What changes these pixels raises PIXELS_VERSION in models/image_processor.py.
    """
    format = sniff(data, limits.formats)
    with reading(format.name), open_header(data, format, limits) as picture:
        read_pixels(picture)
        turn = TURN_BY_ORIENTATION.get(orientation_of(picture))
        rgb = _to_rgb(picture)
        return rgb.transpose(turn) if turn is not None else rgb


def open_header(data: bytes, format: Format, limits: ImageConfig) -> Image.Image:
    """Read the header and compare it with the limits; no pixel is decoded. Call inside `reading`."""
    picture = format.open(BytesIO(data))
    width, height = picture.size
    if width < 1 or height < 1:
        raise InvalidImage(f"the picture has {width} x {height} pixels", "image")
    if max(width, height) > limits.max_image_side_px:
        raise _too_large(width, height, f"a side may have at most {limits.max_image_side_px}")
    if width * height > limits.max_image_pixels:
        raise _too_large(width, height, f"at most {limits.max_image_pixels} pixels are allowed")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise _too_large(width, height, f"the longer side may be at most {limits.max_aspect_ratio:g} times the shorter")
    if picture.mode not in MODES:
        raise UnsupportedImage(f"pictures of colour mode {picture.mode} are not supported", "image")
    return picture


@contextlib.contextmanager
def reading(format_name: str) -> Iterator[None]:
    """Turn whatever Pillow raises over a client's bytes into our words; its own go to the log."""
    try:
        yield
    except RetinaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageTooLarge(f"the {format_name} picture needs too much memory to decode", "image") from error
    except Exception as error:
        # Everything: on broken files its decoders raise OSError, SyntaxError, ValueError, struct.error, KeyError,
        # EOFError, TypeError, RuntimeError and more, by file format and version.
        logger.info("a %s picture could not be decoded: %r", format_name, error)
        raise InvalidImage(f"the {format_name} picture is damaged or incomplete", "image") from error


def read_pixels(picture: Image.Image) -> None:
    """Decode the first frame to its last row. Call inside `reading`."""
    picture.load()


def orientation_of(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none. Only after `read_pixels`: PNG may say it behind the pixels."""
    try:
        orientation = picture.getexif().get(ExifTag.Orientation, 1)
    except Exception as error:  # as in `reading`; metadata that cannot be read does not make the pixels bad
        logger.info("EXIF data could not be read: %r", error)
        return 1
    return orientation if orientation in TURN_BY_ORIENTATION else 1


def _too_large(width: int, height: int, limit: str) -> ImageTooLarge:
    return ImageTooLarge(f"the picture has {width} x {height} pixels; {limit}", "image")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in SIXTEEN_BIT_MODES:
        return _gray_from_16_bits(picture)
    if picture.mode in ("I", "F"):
        return _gray_from_open_range(picture)
    if picture.has_transparency_data:
        return _on_white(picture.convert("RGBA"))
    return picture.convert("RGB")


def _on_white(picture: Image.Image) -> Image.Image:
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def _gray_from_16_bits(picture: Image.Image) -> Image.Image:
    """Scaled; Pillow's own convert() would clip everything above 255 to white."""
    values = np.asarray(picture)  # (height, width) uint16
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    transparent = picture.info.get("transparency")  # PNG: the one value that is see-through
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _gray_from_open_range(picture: Image.Image) -> Image.Image:
    """32-bit TIFF does not say what white is: 16-bit integers are read as such, all else by its own darkest and
    brightest value."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64))  # (height, width)
    low, high = float(values.min()), float(values.max())
    if picture.mode == "I" and low >= 0 and high <= 65_535:
        low, high = 0.0, 65_535.0
    scaled = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
