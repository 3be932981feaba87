"""Encoded pictures for the tests of images/."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture
def encode() -> Encode:
    """encode(picture, "PNG", **options) -> the bytes of a file."""

    def to_bytes(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
        file = BytesIO()
        picture.save(file, format=format, **options)
        return file.getvalue()

    return to_bytes


@pytest.fixture
def photo() -> Image.Image:
    """120 x 80, noisy enough that files have a body to damage."""
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def png_header() -> Callable[[int, int], bytes]:
    """png_header(width, height) -> a PNG that claims this size and has one row of data at most."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def build(width: int, height: int) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        body = zlib.compress(b"\0" * 100)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    return build
