"""Pixels change only together with PIXELS_VERSION: cached features are found by a fingerprint that holds it.

A failure here means that a picture has other pixels than with the version before. If it was meant, raise PIXELS_VERSION
in deployments/models/image_processor.py and write down the new hashes; after a new version of Pillow or transformers
(which fingerprints hold as well) the new hashes are enough.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from byte_values import values_of
from PIL import Image
from tiny_llava import build_llava
from tiny_moondream import SMALL, build_moondream
from tiny_qwen2_vl import build_qwen2_vl

from deployments.config import ImageConfig
from deployments.images.decode import decode_picture
from deployments.models.family import Pixels
from deployments.models.image_processor import PIXELS_VERSION
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch

LIMITS = ImageConfig(formats=["PNG", "BMP", "TIFF"])
VERSION = 1
HASHES = {
    "decoded": "927b2944cf67ec37",
    "smolvlm": "836b2c9ef1898b28",
    "qwen2_vl": "811ca0c723e1ee94",
    "llava": "e081d9a4d673a873",
    "moondream": "0d83f03b5ccaf139",
}


def noise(width: int, height: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def in_file(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def make_files() -> list[bytes]:
    """One of each way that decoding takes: none of them loses anything, and no two have the same shape."""
    turned = Image.Exif()
    turned[0x112] = 6
    gray = Image.fromarray(noise(31, 20, 1))
    return [
        in_file(Image.fromarray(noise(90, 61))),
        in_file(Image.fromarray(noise(33, 47, 4), "RGBA")),
        in_file(Image.fromarray(noise(50, 22)), exif=turned),
        in_file(Image.fromarray(noise(40, 30, 1, np.uint16))),
        in_file(gray.convert("P")),
        in_file(gray.convert("LA")),
        in_file(gray.convert("1"), "BMP"),
        in_file(Image.fromarray(noise(21, 17)).convert("CMYK"), "TIFF"),
        in_file(Image.fromarray(noise(23, 19, 1).astype(np.float32)), "TIFF"),
        in_file(Image.fromarray(noise(4, 602))),
        in_file(Image.fromarray(noise(603, 4))),
    ]


def hash_of(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [decode_picture(data, LIMITS) for data in make_files()]


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pixels")
    return {
        "smolvlm": tiny_checkpoint("256m"),
        "qwen2_vl": build_qwen2_vl(root / "qwen2_vl", variant="2b", seed=0),
        "llava": build_llava(root / "llava"),
        "moondream": build_moondream(root / "moondream", config=SMALL),
    }


def arrays_of(pixels: Pixels) -> list[np.ndarray]:
    """Whether bytes travel or the values they stand for is no matter of pixels: it is the values that count."""
    if "values" not in pixels.tensors:
        return [pixels.tensors[name] for name in sorted(pixels.tensors)]
    return [pixels.tensors[name] for name in ("grid_thw",) if name in pixels.tensors] + [values_of(pixels)]


def test_decoding(pictures: list[Image.Image]) -> None:
    assert (PIXELS_VERSION, hash_of(*map(np.asarray, pictures))) == (VERSION, HASHES["decoded"]), __doc__


@pytest.mark.parametrize("family", [name for name in HASHES if name != "decoded"])
def test_preprocessing(folders: dict[str, Path], pictures: list[Image.Image], family: str) -> None:
    preprocess = open_family(family).open_preprocessor(folders[family])
    prepared = [preprocess(picture) for picture in pictures]
    arrays = [array for pixels in prepared for array in arrays_of(pixels)]
    assert (PIXELS_VERSION, hash_of(*arrays)) == (VERSION, HASHES[family]), __doc__


@pytest.mark.parametrize("family", [name for name in HASHES if name != "decoded"])
def test_every_fingerprint_holds_the_version(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.models import image_processor

    before = open_family(family).open_preprocessor(folders[family]).fingerprint
    monkeypatch.setattr(image_processor, "PIXELS_VERSION", PIXELS_VERSION + 1)
    assert open_family(family).open_preprocessor(folders[family]).fingerprint != before
