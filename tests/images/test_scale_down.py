"""Smaller pictures: their size, their bytes, and what is refused."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from deployments.config import ImageConfig
from deployments.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from deployments.images.scale_down import scale_down

LIMITS = ImageConfig()


def encoded(size: tuple[int, int], format: str = "PNG", orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    picture.save(file, format, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 50), (64, 32)), ((50, 100), (32, 64)), ((65, 64), (64, 63)), ((1000, 1), (64, 1)), ((128, 128), (64, 64))],
)
def test_the_longer_side_is_the_limit(size: tuple[int, int], expected: tuple[int, int]) -> None:
    small = Image.open(io.BytesIO(scale_down(encoded(size), 64, LIMITS)))
    assert (small.size, small.format) == (expected, "PNG")


@pytest.mark.parametrize("size", [(64, 64), (64, 1), (1, 1)])
def test_what_fits_stays_as_it_is(size: tuple[int, int]) -> None:
    data = encoded(size, "JPEG")
    assert scale_down(data, 64, LIMITS) is data


def test_the_same_bytes_give_the_same_bytes() -> None:
    data = encoded((200, 100), "JPEG")
    assert scale_down(data, 64, LIMITS) == scale_down(bytes(bytearray(data)), 64, LIMITS)


def test_it_stands_upright_and_says_no_more_that_it_lay() -> None:
    small = Image.open(io.BytesIO(scale_down(encoded((200, 100), "JPEG", orientation=6), 64, LIMITS)))
    assert small.size == (32, 64)
    assert small.getexif().get(274, 1) == 1


def test_it_still_shows_the_same() -> None:
    small = Image.open(io.BytesIO(scale_down(encoded((256, 256)), 64, LIMITS))).convert("L")
    assert small.getpixel((5, 0)) < 10  # the gradient goes from black at the top to white
    assert small.getpixel((5, 63)) > 245


def test_what_is_refused() -> None:
    with pytest.raises(InvalidImage, match="empty"):
        scale_down(b"", 64, LIMITS)
    with pytest.raises(UnsupportedImage):
        scale_down(b"%PDF-1.7", 64, LIMITS)
    with pytest.raises(InvalidImage, match="damaged"):
        scale_down(encoded((200, 100))[:-40], 64, LIMITS)
    with pytest.raises(ImageTooLarge):
        scale_down(encoded((200, 100)), 64, ImageConfig(max_image_pixels=1000))
    with pytest.raises(ImageTooLarge):
        scale_down(encoded((200, 100)), 64, ImageConfig(max_image_bytes=100))
