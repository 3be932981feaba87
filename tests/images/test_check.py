"""What is refused, and with which words; what an id is made of."""

from __future__ import annotations

import hashlib
import hmac
import tracemalloc
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deployments.config import ImageConfig
from deployments.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from deployments.images.check import check_image
from deployments.images.decode import decode_picture

LIMITS = ImageConfig()
SECRET = b"s" * 32
Encode = Callable[..., bytes]


def refusal(data: bytes, limits: ImageConfig = LIMITS) -> InvalidImage:
    with pytest.raises(InvalidImage) as caught:
        check_image(data, limits, SECRET)
    return caught.value


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("WEBP", "image/webp"),
        ("GIF", "image/gif"),
        ("BMP", "image/bmp"),
    ],
)
def test_a_picture_of_each_format(photo: Image.Image, encode: Encode, format: str, media_type: str) -> None:
    data = encode(photo, format)
    image = check_image(data, LIMITS, SECRET)
    assert (image.ref.width, image.ref.height, image.ref.num_bytes) == (120, 80, len(data))
    assert image.ref.media_type == media_type
    assert image.data == data
    assert image.ref.id == hmac.new(SECRET, data, hashlib.sha256).hexdigest()


def test_a_multi_picture_jpeg_is_its_first_picture(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo, "MPO", save_all=True, append_images=[photo.resize((10, 10))])
    ref = check_image(data, LIMITS, SECRET).ref
    assert (ref.media_type, ref.width, ref.height) == ("image/jpeg", 120, 80)


def test_empty() -> None:
    assert "empty" in refusal(b"").message


def test_too_many_bytes(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo)
    error = refusal(data, ImageConfig(max_image_bytes=len(data) - 1))
    assert isinstance(error, ImageTooLarge)
    assert str(len(data)) in error.message
    assert str(len(data) - 1) in error.message
    assert check_image(data, ImageConfig(max_image_bytes=len(data)), SECRET)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"this is a plain text", "not a picture"),
        (b"%PDF-1.7 ...", "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf  <?xml version="1.0"?><svg/>', "SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"PK\x03\x04....", "ZIP"),
        (b"\0" * 100, "not a picture"),
        (b"RIFF\0\0\0\0WAVE", "not a picture"),
    ],
)
def test_other_kinds_of_data(data: bytes, what: str) -> None:
    error = refusal(data)
    assert isinstance(error, UnsupportedImage)
    assert what in error.message
    assert "JPEG, PNG, WEBP, GIF, BMP" in error.message
    assert error.param == "image"


def test_formats_that_the_configuration_leaves_out(photo: Image.Image, encode: Encode) -> None:
    error = refusal(encode(photo, "TIFF"))
    assert isinstance(error, UnsupportedImage)
    assert error.message == "the data is a TIFF picture; allowed are JPEG, PNG, WEBP, GIF, BMP"
    assert check_image(encode(photo, "TIFF"), ImageConfig(formats=("TIFF",)), SECRET).ref.media_type == "image/tiff"
    assert isinstance(refusal(encode(photo, "JPEG"), ImageConfig(formats=("PNG",))), UnsupportedImage)


def test_a_bomb_is_refused_by_its_header(png_header: Callable[[int, int], bytes]) -> None:
    tracemalloc.start()
    error = refusal(png_header(50_000, 50_000))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, ImageTooLarge)
    assert "50000 x 50000" in error.message
    assert "16384" in error.message
    assert peak_bytes < 5_000_000


@pytest.mark.parametrize(
    ("size", "limits", "words"),
    [
        ((101, 100), {"max_image_pixels": 10_000}, "at most 10000 pixels"),
        ((20, 101), {"max_image_side_px": 100}, "at most 100"),
        ((41, 10), {"max_aspect_ratio": 4}, "4 times"),
        ((10, 41), {"max_aspect_ratio": 4}, "4 times"),
    ],
)
def test_limits_of_the_header(encode: Encode, size: tuple[int, int], limits: dict[str, int], words: str) -> None:
    data = encode(Image.new("L", size))
    error = refusal(data, ImageConfig(**limits))
    assert isinstance(error, ImageTooLarge)
    assert words in error.message
    assert f"{size[0]} x {size[1]}" in error.message


def test_a_limit_above_pillows_own_counts(png_header: Callable[[int, int], bytes]) -> None:
    """200 million pixels: Pillow would refuse them whatever we were told to allow. Damaged is the right answer here."""
    limits = ImageConfig(max_image_pixels=300_000_000, max_image_side_px=20_000)
    assert "damaged" in refusal(png_header(20_000, 10_000), limits).message


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP"])
def test_thin_pictures_pass(encode: Encode, size: tuple[int, int], format: str) -> None:
    ref = check_image(encode(Image.new("RGB", size), format), LIMITS, SECRET).ref
    assert (ref.width, ref.height) == size


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files(photo: Image.Image, encode: Encode, format: str, part: float) -> None:
    data = encode(photo, format)
    error = refusal(data[: int(len(data) * part)])
    assert error.status == 400
    assert error.message == f"the {format} picture is damaged or incomplete"


def test_a_progressive_jpeg_cut_in_its_last_scan(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo.resize((800, 600)), "JPEG", progressive=True)
    assert check_image(data, LIMITS, SECRET).ref.width == 800
    assert "incomplete" in refusal(data[: int(len(data) * 0.95)]).message


def test_a_header_that_promises_more_than_there_is(png_header: Callable[[int, int], bytes]) -> None:
    assert refusal(png_header(4000, 4000)).message == "the PNG picture is damaged or incomplete"


@pytest.mark.parametrize("size", [(0, 10), (10, 0)])
def test_pictures_without_pixels(png_header: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    assert refusal(png_header(*size)).status == 400


def test_signatures_alone_are_no_pictures() -> None:
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"):
        assert "damaged" in refusal(start).message


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_picture(photo: Image.Image, encode: Encode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = (80, 120) if orientation >= 5 else (120, 80)
    for format in ("JPEG", "PNG", "WEBP"):
        ref = check_image(encode(photo, format, exif=exif), LIMITS, SECRET).ref
        assert (ref.width, ref.height) == expected, format


def test_equal_pixels_in_other_shapes_and_modes_have_other_ids(encode: Encode) -> None:
    row = np.arange(64, dtype=np.uint8)
    shapes = [(64, 1), (1, 64), (8, 8), (16, 4), (4, 16)]
    pictures = [Image.fromarray(row.reshape(shape)) for shape in shapes]
    pictures += [Image.fromarray(row.reshape(8, 8)).convert(mode) for mode in ("RGB", "RGBA", "LA")]
    files = [encode(picture) for picture in pictures]
    files += [encode(pictures[2], "BMP"), encode(pictures[2], compress_level=0)]
    ids = {check_image(data, LIMITS, SECRET).ref.id for data in files}
    assert len(ids) == len(files)


def test_ids_depend_on_the_secret_and_on_every_byte(photo: Image.Image, encode: Encode) -> None:
    data = encode(photo)
    ids = {
        check_image(data, LIMITS, SECRET).ref.id,
        check_image(data, LIMITS, b"t" * 32).ref.id,
        check_image(data + b"\0", LIMITS, SECRET).ref.id,  # PNG ignores what follows its end
    }
    assert len(ids) == 3
    assert all(len(id) == 64 for id in ids)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_never_surprises(data: st.DataObject) -> None:
    """Whatever is done to a file: it is refused in our words, or accepted and then decodes to the promised size."""
    format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
    file = BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format=format)
    damaged = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    limits = ImageConfig(max_image_pixels=100_000)
    try:
        image = check_image(bytes(damaged), limits, SECRET)
    except InvalidImage:
        return
    assert decode_picture(image.data, limits).size == (image.ref.width, image.ref.height)
