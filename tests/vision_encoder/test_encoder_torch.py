"""Real towers in the encoder: features equal those of the whole model in transformers bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.config import RetinaConfig, parse_config
from deployments.images.check import check_image
from deployments.images.decode import decode_picture
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import EncodeRequest, FeatureDtype, ImageFeatures
from deployments.vision_encoder.encoder import Encoder, open_encoder
from deployments.vision_encoder.towers import to_features

pytestmark = pytest.mark.torch

SIZES = [(1, 1), (30, 40), (64, 64), (500, 200), (90, 300), (64, 64)]
TinyCheckpoint = Callable[..., Path]


def blotches(width: int, height: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, format="PNG")
    return file.getvalue()


PICTURES = [blotches(width, height, seed) for seed, (width, height) in enumerate(SIZES)]


class Opened:
    """An encoder over checkpoints, with one tenant's pictures."""

    def __init__(self, encoder: Encoder, images: MemoryImageStore) -> None:
        self.encoder = encoder
        self.images = images

    async def encode(self, data: bytes, model: str) -> ImageFeatures:
        image = check_image(data, RetinaConfig.model_fields["images"].default, b"secret")
        await self.images.put("t", image)
        return await self.encoder.encode(EncodeRequest("t", model, image.ref, timeout_s=60))


@pytest.fixture
async def open_models(tmp_path: Path) -> AsyncIterator[Callable[..., Opened]]:
    """open_models(name=folder or settings, ...) -> Opened; closed at the end, the cache folder stays."""
    opened: list[Opened] = []

    def open_one(**models: Path | dict[str, object]) -> Opened:
        settings = {name: at if isinstance(at, dict) else {"checkpoint": str(at)} for name, at in models.items()}
        config = parse_config(
            {
                "models": [{"name": name, "family": "smolvlm", **at} for name, at in settings.items()],
                "data_dir": str(tmp_path),
                "device": "cpu",
                "generator": {"dtype": "float32"},
            }
        )
        images = MemoryImageStore(10**8)
        opened.append(Opened(open_encoder(config, images), images))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.encoder.close()


def features_of_transformers(folder: Path, data: bytes) -> np.ndarray:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    picture = decode_picture(data, RetinaConfig.model_fields["images"].default)
    batch = processor([[picture]], return_tensors="pt")
    with torch.inference_mode():
        output = model.get_image_features(batch["pixel_values"], batch["pixel_attention_mask"], return_dict=True)
    return torch.cat(list(output.pooler_output)).numpy()


@pytest.mark.parametrize("variant", ["instruct", "256m", "smolvlm2"])
async def test_features_of_many_sizes_at_once_equal_transformers(
    tiny_checkpoint: TinyCheckpoint, open_models: Callable[..., Opened], variant: str
) -> None:
    folder = tiny_checkpoint(variant)
    opened = open_models(tiny=folder)
    answers = await asyncio.gather(*(opened.encode(data, "tiny") for data in PICTURES))
    for data, answer in zip(PICTURES, answers, strict=True):
        assert answer.dtype == "float32"
        assert np.array_equal(answer.array, features_of_transformers(folder, data))
    assert len({answer.array.shape for answer in answers}) > 1


async def test_warm_features_equal_cold_ones(
    tiny_checkpoint: TinyCheckpoint, open_models: Callable[..., Opened]
) -> None:
    folder = tiny_checkpoint()
    opened = open_models(tiny=folder)
    cold = await opened.encode(PICTURES[3], "tiny")
    warm = await opened.encode(PICTURES[3], "tiny")
    await opened.encoder.close()
    restarted = await open_models(tiny=folder).encode(PICTURES[3], "tiny")
    assert [cold.source, warm.source, restarted.source] == ["tower", "memory", "disk"]
    assert cold.array.tobytes() == warm.array.tobytes() == restarted.array.tobytes()


async def test_models_of_one_checkpoint_share_and_others_do_not(
    tiny_checkpoint: TinyCheckpoint, open_models: Callable[..., Opened], tmp_path: Path
) -> None:
    import shutil

    folder, other = tiny_checkpoint(), tiny_checkpoint(seed=1)
    copy = tmp_path / "copy"  # equal contents, so that only fingerprints can tell
    shutil.copytree(folder, copy)
    opened = open_models(one=folder, same=copy, other=other)
    assert [tower["models"] for tower in (await opened.encoder.statistics())["towers"]] == [["one", "same"], ["other"]]
    first = await opened.encode(PICTURES[1], "one")
    assert (await opened.encode(PICTURES[1], "same")).source == "memory"
    different = await opened.encode(PICTURES[1], "other")
    assert different.source == "tower"
    assert not np.array_equal(first.array, different.array)


async def test_bfloat16_travels_as_bits(tiny_checkpoint: TinyCheckpoint, open_models: Callable[..., Opened]) -> None:
    import torch

    folder = str(tiny_checkpoint())
    opened = open_models(full={"checkpoint": folder}, half={"checkpoint": folder, "generator": {"dtype": "bfloat16"}})
    full, half = [await opened.encode(PICTURES[3], model) for model in ("full", "half")]
    assert (half.dtype, half.array.dtype) == ("bfloat16", np.uint16)
    values = torch.from_numpy(half.array.copy()).view(torch.bfloat16).float().numpy()
    assert values.shape == full.array.shape
    assert 0 < np.abs(values - full.array).max() < 0.1


async def test_bfloat16_features_never_hang_on_company(
    tiny_checkpoint: TinyCheckpoint, open_models: Callable[..., Opened]
) -> None:
    """On a CPU a picture's tiles take turns with others' tiles; each is computed as if it were alone."""
    opened = open_models(tiny={"checkpoint": str(tiny_checkpoint()), "generator": {"dtype": "bfloat16"}})
    together = await asyncio.gather(*(opened.encode(data, "tiny") for data in PICTURES))
    [lane] = opened.encoder._lanes
    for data, expected in zip(PICTURES, together, strict=True):
        image = check_image(data, RetinaConfig.model_fields["images"].default, b"secret")
        await opened.encoder._cache.drop([lane.key("t", image.ref.id)])
        alone = await opened.encode(data, "tiny")
        assert (alone.source, alone.array.tobytes()) == ("tower", expected.array.tobytes())


@pytest.mark.parametrize(("dtype", "bits"), [("float32", np.float32), ("bfloat16", np.uint16)])
def test_a_view_of_a_pass_is_copied_and_a_whole_one_is_not(dtype: FeatureDtype, bits: type) -> None:
    """What is cached must not keep the pictures beside it in memory."""
    import torch

    batch = torch.arange(12, dtype=getattr(torch, dtype)).reshape(4, 3)
    part, whole = to_features(batch[:2], dtype), to_features(batch, dtype)
    expected = batch.view(torch.uint16).numpy().copy() if dtype == "bfloat16" else batch.numpy().copy()
    assert whole.array.__array_interface__["data"][0] == batch.data_ptr()
    assert (whole.array == expected).all()
    batch.zero_()
    assert (part.array == expected[:2]).all()
    for features in (part, whole):
        assert (features.array.dtype, features.dtype) == (bits, dtype)
        assert not features.array.flags.writeable
        assert features.array.flags.c_contiguous
