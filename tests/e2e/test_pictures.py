"""Odd pictures are answered, bad ones refused, through the whole running graph."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from conftest import ENDLESS
from PIL import Image
from service import Service, ask

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _red(size: tuple[int, int] = (120, 80), mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", size, (220, 30, 40)).convert(mode)


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(_red(), "JPEG", exif=exif)


ODD_PICTURES = {
    "1x1": lambda: _encoded(_red((1, 1)), "PNG"),
    "1x10000": lambda: _encoded(_red((1, 10_000)), "PNG"),
    "10000x1": lambda: _encoded(_red((10_000, 1)), "PNG"),
    "animated GIF": lambda: _encoded(_red(), "GIF", save_all=True, append_images=[Image.new("RGB", (120, 80), "blue")]),
    "CMYK": lambda: _encoded(_red(mode="CMYK"), "JPEG"),
    "16 bit": lambda: _encoded(Image.new("I;16", (64, 64), 40_000), "PNG"),
    "palette": lambda: _encoded(_red(mode="P"), "PNG"),
    "EXIF-rotated": _rotated,
}


@pytest.mark.parametrize("name", ODD_PICTURES)
@pytest.mark.parametrize("model", ["smolvlm", ENDLESS])
def test_odd_pictures_are_answered(service: Service, name: str, model: str) -> None:
    form = {"message": "What do you see in this image?", "model": model, "max_new_tokens": "4"}
    response = ask(service, ODD_PICTURES[name](), **form)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["image_tokens"] > 0


def _bomb() -> bytes:
    """A PNG whose header says 50,000 x 50,000."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    pixels = zlib.compress(bytes(1000))
    data = b"IDAT" + pixels
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk)),
            struct.pack(">I", len(pixels)) + data + struct.pack(">I", zlib.crc32(data)),
            struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")),
        ]
    )


BAD_PICTURES = {
    "text": (lambda: b"this is no picture at all", 415),
    "empty": (lambda: b"", 400),
    "truncated JPEG": (lambda: _encoded(Image.effect_noise((300, 300), 60).convert("RGB"), "JPEG")[:3000], 400),
    "PNG bomb": (_bomb, 413),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_refused_and_harm_nobody(service: Service, name: str) -> None:
    make, status = BAD_PICTURES[name]
    response = ask(service, make(), message="What is it?", session_id="bad-picture")
    assert response.status_code == status, response.text
    assert response.json()["error"]["param"] == "image"
    with service.client() as client:
        assert client.get("/chat/history/bad-picture").status_code == 404
    assert ask(service, message="Hello").status_code == 200
