"""Every kind of picture becomes the right RGB pixels."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.config import ImageConfig
from deployments.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from deployments.images.check import check_image
from deployments.images.decode import decode_picture

LIMITS = ImageConfig()
WITH_TIFF = ImageConfig(formats=("PNG", "TIFF"))
Encode = Callable[..., bytes]


def pixels(data: bytes, limits: ImageConfig = LIMITS) -> np.ndarray:
    """(height, width, 3) uint8, after the same bytes have passed the check."""
    ref = check_image(data, limits, b"secret").ref
    picture = decode_picture(data, limits)
    assert picture.mode == "RGB"
    assert picture.size == (ref.width, ref.height)
    return np.asarray(picture)


def test_rgb_stays(photo: Image.Image, encode: Encode) -> None:
    assert np.array_equal(pixels(encode(photo)), np.asarray(photo))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(photo: Image.Image, encode: Encode, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo, format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(upright))


def test_exif_rotation_brings_the_marked_corner_up(encode: Encode) -> None:
    picture = Image.new("RGB", (3, 2), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    turned = pixels(encode(picture, exif=exif))
    assert turned.shape == (3, 2, 3)
    assert turned[0, 1].tolist() == [255, 0, 0]


def test_tiff_is_turned_once(encode: Encode) -> None:
    picture = Image.new("RGB", (3, 2), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    for compression in (None, "tiff_lzw"):
        turned = pixels(encode(picture, "TIFF", tiffinfo={274: 6}, compression=compression), WITH_TIFF)
        assert turned.shape == (3, 2, 3)
        assert turned[0, 1].tolist() == [255, 0, 0]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says so, and goes on
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_make_a_picture_bad(photo: Image.Image, encode: Encode, exif: bytes) -> None:
    assert pixels(encode(photo, "JPEG", exif=exif)).shape == (80, 120, 3)


def test_an_unknown_orientation_is_upright(photo: Image.Image, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert pixels(encode(photo, "JPEG", exif=exif)).shape == (80, 120, 3)


def test_cmyk(encode: Encode) -> None:
    for cmyk, rgb in [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 255, 0), (0, 255, 0)), ((0, 0, 0, 255), (0, 0, 0))]:
        shown = pixels(encode(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95))
        assert np.abs(shown[8, 8].astype(int) - rgb).max() <= 3


@pytest.mark.parametrize(("value", "shown"), [(0, 0), (257, 1), (32_768, 128), (65_535, 255), (300, 1), (25_700, 100)])
def test_16_bit_gray_is_scaled_not_clipped(encode: Encode, value: int, shown: int) -> None:
    picture = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    assert picture.mode == "I;16"
    for format in ("PNG", "TIFF"):
        assert pixels(encode(picture, format), WITH_TIFF)[0, 0].tolist() == [shown] * 3


def test_16_bit_gray_big_endian(encode: Encode) -> None:
    picture = Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff")
    assert pixels(encode(picture, "TIFF"), WITH_TIFF)[0, :, 0].tolist() == [128, 255]


def test_16_bit_gray_with_a_transparent_value(encode: Encode) -> None:
    picture = Image.fromarray(np.array([[1000, 2000]], dtype=np.uint16))
    assert pixels(encode(picture, transparency=1000))[0, :, 0].tolist() == [255, 8]


def test_32_bit_integers(encode: Encode) -> None:
    as_16_bits = Image.fromarray(np.array([[0, 32_768, 65_535]], dtype=np.int32))
    assert pixels(encode(as_16_bits, "TIFF"), WITH_TIFF)[0, :, 0].tolist() == [0, 128, 255]
    wide = Image.fromarray(np.array([[-1_000_000, 0, 1_000_000]], dtype=np.int32))
    assert pixels(encode(wide, "TIFF"), WITH_TIFF)[0, :, 0].tolist() == [0, 128, 255]


def test_floats(encode: Encode) -> None:
    picture = Image.fromarray(np.array([[-1.0, 0.0, 1.0, np.nan]], dtype=np.float32))
    assert pixels(encode(picture, "TIFF"), WITH_TIFF)[0, :, 0].tolist() == [0, 128, 255, 128]
    flat = Image.fromarray(np.full((2, 2), 7.0, dtype=np.float32))
    assert pixels(encode(flat, "TIFF"), WITH_TIFF)[0, 0].tolist() == [0, 0, 0]


def test_gray(encode: Encode) -> None:
    assert pixels(encode(Image.new("L", (2, 2), 100)))[0, 0].tolist() == [100] * 3


def test_one_bit(encode: Encode) -> None:
    picture = Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    for format in ("PNG", "BMP"):
        assert pixels(encode(picture, format))[0, :, 0].tolist() == [0, 255]


def test_palette(encode: Encode) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    for format in ("PNG", "GIF", "BMP"):
        assert pixels(encode(picture, format))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_palette_with_transparency(encode: Encode) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    for format in ("PNG", "GIF"):
        assert pixels(encode(picture, format, transparency=0))[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_palette_with_half_transparent_entries(encode: Encode) -> None:
    picture = Image.new("P", (1, 1))
    picture.putpalette([0, 0, 0])
    shown = pixels(encode(picture, transparency=bytes([128])))[0, 0]
    assert shown.tolist() == [127, 127, 127]


def test_transparency_lies_on_white(encode: Encode) -> None:
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (200, 0, 100, alpha))
    assert pixels(encode(picture))[0].tolist() == [[255, 255, 255], [227, 127, 177], [200, 0, 100]]


def test_gray_with_alpha_lies_on_white(encode: Encode) -> None:
    picture = Image.new("LA", (2, 1), (50, 0))
    picture.putpixel((1, 0), (50, 255))
    assert pixels(encode(picture))[0, :, 0].tolist() == [255, 50]


def test_rgb_with_a_transparent_colour(encode: Encode) -> None:
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (4, 5, 6))
    assert pixels(encode(picture, transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(encode: Encode, format: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **options)
    shown = pixels(data)
    assert shown.shape == (10, 20, 3)
    assert (shown == [255, 0, 0]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_thin_pictures(encode: Encode, size: tuple[int, int]) -> None:
    assert pixels(encode(Image.new("RGB", size, (1, 2, 3))))[-1, -1].tolist() == [1, 2, 3]


def test_unsupported_colour_modes(encode: Encode) -> None:
    data = encode(Image.new("LAB", (4, 4)), "TIFF")
    with pytest.raises(UnsupportedImage, match="LAB"):
        check_image(data, WITH_TIFF, b"secret")
    with pytest.raises(UnsupportedImage, match="LAB"):
        decode_picture(data, WITH_TIFF)


def test_decoding_checks_for_itself(photo: Image.Image, encode: Encode) -> None:
    """Stored pictures may be older than today's limits."""
    data = encode(photo, "JPEG")
    with pytest.raises(ImageTooLarge, match="100 pixels"):
        decode_picture(data, ImageConfig(max_image_pixels=100))
    with pytest.raises(UnsupportedImage, match="allowed are PNG"):
        decode_picture(data, ImageConfig(formats=("PNG",)))
    with pytest.raises(InvalidImage, match="incomplete"):
        decode_picture(data[:1000], LIMITS)
