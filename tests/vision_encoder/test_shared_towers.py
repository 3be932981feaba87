"""Two LLaVA models over one frozen tower share it and its features, a third has its own; the start-up log says so."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import weakref
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.config import RetinaConfig, parse_config
from deployments.images.check import check_image
from deployments.images.stores.memory import MemoryImageStore
from deployments.types import EncodeRequest, ImageFeatures, StoredImage
from deployments.vision_encoder.encoder import Encoder, open_encoder

pytestmark = pytest.mark.torch

MODELS: dict[str, dict[str, Any]] = {
    "vicuna": {"language": "llama", "seed": 1},
    "qwen": {"language": "qwen2", "seed": 2},
    "other": {"language": "llama", "seed": 1, "tower_seed": 9},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tiny_llava import build_llava

    root = tmp_path_factory.mktemp("llava")
    return {name: build_llava(root / name, **about) for name, about in MODELS.items()}


@pytest.fixture
def image() -> StoredImage:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(noise).resize((200, 140), Image.Resampling.BICUBIC).save(file, format="PNG")
    return check_image(file.getvalue(), RetinaConfig.model_fields["images"].default, b"secret")


Open = Callable[..., "Opened"]


class Opened:
    """An encoder over the three models, and how often its towers ran."""

    def __init__(self, encoder: Encoder, images: MemoryImageStore, image: StoredImage, runs: list[int]) -> None:
        self.encoder = encoder
        self.runs = runs  # pictures in each run of any tower
        self._images = images
        self._image = image

    async def look(self, model: str) -> ImageFeatures:
        await self._images.put("t", self._image)
        return await self.encoder.encode(EncodeRequest("t", model, self._image.ref, timeout_s=60))


@pytest.fixture
async def open_models(
    folders: dict[str, Path], image: StoredImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Open]:
    """open_models(**settings of models by name) -> Opened; closed at the end, the cache folder stays."""
    from deployments.models.llava_tower import LlavaTower

    opened: list[Opened] = []
    runs: list[int] = []
    encode = LlavaTower.encode

    def counted(tower: LlavaTower, batch: Any) -> Any:
        runs.append(len(batch))
        return encode(tower, batch)

    monkeypatch.setattr(LlavaTower, "encode", counted)

    def open_all(**settings: dict[str, object]) -> Opened:
        models = [
            {"name": name, "family": "llava", "checkpoint": str(folder), **settings.get(name, {})}
            for name, folder in folders.items()
        ]
        exact = {"generator": {"dtype": "float32"}}
        config = parse_config({"models": models, "data_dir": str(tmp_path), "device": "cpu", **exact})
        images = MemoryImageStore(10**8)
        runs.clear()
        opened.append(Opened(open_encoder(config, images), images, image, runs))
        return opened[-1]

    yield open_all
    for one in opened:
        await one.encoder.close()


async def test_one_run_of_the_tower_serves_two_models(open_models: Open) -> None:
    opened = open_models()
    first, second, third = [await opened.look(model) for model in ("vicuna", "qwen", "other")]
    assert [first.source, second.source, third.source] == ["tower", "memory", "tower"]
    assert opened.runs == [1, 1], "one run for the two, one for the third"
    assert np.array_equal(first.array, second.array)
    assert first.array.shape == third.array.shape == (16, 48), "as wide as the tower: nobody's projector has seen them"
    assert not np.array_equal(first.array, third.array)


async def test_the_statistics_show_who_shares(open_models: Open) -> None:
    towers = (await open_models().encoder.statistics())["towers"]
    assert [tower["models"] for tower in towers] == [["vicuna", "qwen"], ["other"]]


async def test_after_a_restart_the_other_model_finds_the_features_on_disk(open_models: Open) -> None:
    opened = open_models()
    first = await opened.look("vicuna")
    await opened.encoder.close()
    again = open_models()
    second = await again.look("qwen")
    assert (second.source, again.runs) == ("disk", [])
    assert np.array_equal(first.array, second.array)


async def test_other_dtypes_are_other_features(open_models: Open) -> None:
    opened = open_models(qwen={"generator": {"dtype": "bfloat16"}})
    assert [(await opened.look(model)).source for model in ("vicuna", "qwen")] == ["tower", "tower"]


def test_no_more_than_one_copy_too_many_is_held(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qwen` and `again` have the tower of `vicuna`: a second copy is gone before the third is read."""
    from deployments.models import llava
    from deployments.vision_encoder.towers import load_towers

    open_tower, alive, held = llava.open_llava_tower, weakref.WeakSet[Any](), list[int]()

    def watched(*args: Any) -> Any:
        gc.collect()
        held.append(len(alive))
        alive.add(tower := open_tower(*args))
        return tower

    monkeypatch.setattr(llava, "open_llava_tower", watched)
    again = shutil.copytree(folders["qwen"], tmp_path / "again")
    models = [
        {"name": name, "family": "llava", "checkpoint": str(folder)}
        for name, folder in {**folders, "again": again, "more": shutil.copytree(again, tmp_path / "more")}.items()
    ]
    loaded = load_towers(parse_config({"models": models, "data_dir": str(tmp_path), "device": "cpu"}))
    assert held == [0, 1, 1, 2, 2], "vicuna, then qwen's copy is dropped; `other` is kept, the two copies are not"
    assert loaded["vicuna"] is loaded["qwen"] is loaded["again"] is loaded["more"] is not loaded["other"]


async def test_the_log_says_who_shares_with_whom(open_models: Open, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deployments.vision_encoder"):
        open_models()
    lines = [record.message for record in caplog.records if record.message.startswith("model ")]
    vicuna, qwen, other = lines
    assert re.fullmatch(
        r"model vicuna: tower [0-9a-f]{12}, preprocessing [0-9a-f]{12}, width 48, float32 on cpu, shared with qwen",
        vicuna,
    )
    assert qwen == vicuna.replace("model vicuna", "model qwen").replace("with qwen", "with vicuna")
    assert other.endswith("float32 on cpu, not shared")
    assert other.split()[3] != vicuna.split()[3], "its tower is another one"
    assert other.split()[5] == vicuna.split()[5], "its preprocessing is the same"
