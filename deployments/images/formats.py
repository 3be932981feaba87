"""Which picture formats there are, told apart by their first bytes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from deployments.config import ImageFormat
from deployments.errors import UnsupportedImage


@dataclass(frozen=True, slots=True)
class Format:
    name: ImageFormat
    media_type: str
    open: Callable[[BinaryIO], ImageFile]  # reads the header only


# Pillow's own classes instead of Image.open: that one tries parsers in turn and applies a process-wide pixel limit,
# which would silently overrule ours.
FORMATS = (
    Format("JPEG", "image/jpeg", JpegImageFile),
    Format("PNG", "image/png", PngImageFile),
    Format("WEBP", "image/webp", WebPImageFile),
    Format("GIF", "image/gif", GifImageFile),
    Format("BMP", "image/bmp", BmpImageFile),
    Format("TIFF", "image/tiff", TiffImageFile),
)

NOT_PICTURES = (
    (b"%PDF-", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG document"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"PK\x03\x04", "a ZIP archive"),
)


def sniff(data: bytes, allowed: Sequence[ImageFormat]) -> Format:
    """The format by its signature. Raises UnsupportedImage, saying what it is instead and what is allowed."""
    name = _name_by_signature(data)
    if name in allowed:
        return next(format for format in FORMATS if format.name == name)
    what = f"a {name} picture" if name else _what_instead(data)
    raise UnsupportedImage(f"the data is {what}; allowed are {', '.join(allowed)}", "image")


def _name_by_signature(data: bytes) -> ImageFormat | None:
    signatures: dict[ImageFormat, bool] = {
        "JPEG": data.startswith(b"\xff\xd8\xff"),
        "PNG": data.startswith(b"\x89PNG\r\n\x1a\n"),
        "WEBP": data[:4] == b"RIFF" and data[8:12] == b"WEBP",
        "GIF": data.startswith((b"GIF87a", b"GIF89a")),
        "BMP": data.startswith(b"BM"),
        "TIFF": data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    }
    return next((name for name, matches in signatures.items() if matches), None)


def _what_instead(data: bytes) -> str:
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, what in NOT_PICTURES:
        if start.startswith(signature.lower()):
            return what
    return "not a picture in a format known here"
