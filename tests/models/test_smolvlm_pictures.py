"""Features of pictures equal transformers' `get_image_features` bit for bit, alone and in company."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_values import values_of
from PIL import Image

from deployments.errors import CheckpointError, ConfigError
from deployments.models.family import Options
from deployments.models.registry import open_family
from deployments.types import ImagePart, ImageRef, Message

pytestmark = pytest.mark.torch

SIZES = [(1, 1), (1, 10_000), (10_000, 1), (3, 1), (30, 40), (64, 64), (500, 200), (1600, 1200)]


@pytest.fixture
def family() -> Any:
    return open_family("smolvlm")


@pytest.fixture
def tower(family: Any, twin: Any) -> Any:
    return family.open_tower(twin.folder, "cpu", "float32")


@pytest.fixture
def preprocessor(family: Any, twin: Any) -> Any:
    return family.open_preprocessor(twin.folder)


def features_of_original(twin: Any, picture: Image.Image) -> torch.Tensor:
    batch = twin.processor.image_processor([[picture]], return_tensors="pt")
    with torch.inference_mode():
        output = twin.model.get_image_features(batch["pixel_values"], batch["pixel_attention_mask"], return_dict=True)
    return torch.cat(list(output.pooler_output))


@pytest.mark.parametrize("size", SIZES)
def test_alone(twin: Any, tower: Any, preprocessor: Any, picture: Callable[..., Any], size: tuple[int, int]) -> None:
    shown = picture(*size)
    pixels = preprocessor(shown)
    [features] = tower.encode([pixels])
    assert features.shape == (pixels.num_tokens, tower.width)
    assert torch.equal(features, features_of_original(twin, shown))


def test_in_company(twin: Any, tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    together = tower.encode([preprocessor(each) for each in shown])
    assert len({len(features) for features in together}) > 1
    for each, features in zip(shown, together, strict=True):
        assert torch.equal(features, features_of_original(twin, each))


def test_in_one_pass_as_on_an_accelerator(
    tower: Any, preprocessor: Any, picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [preprocessor(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    one_by_one = tower.encode(pixels)
    monkeypatch.setattr(tower, "shares_passes", True)
    for alone, together in zip(one_by_one, tower.encode(pixels), strict=True):
        torch.testing.assert_close(alone, together)


def test_different_pictures_have_different_features(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    one, other = tower.encode([preprocessor(picture(90, 90, seed)) for seed in (1, 2)])
    assert not torch.equal(one, other)


def test_a_tile_of_zeros_is_still_a_tile(twin: Any, tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    pixels = preprocessor(picture(90, 90))
    pixels = replace(pixels, tensors={**pixels.tensors, "values": np.zeros((3, 256), np.float32)})
    [features] = tower.encode([pixels])
    assert len(features) == pixels.num_tokens


def test_pixels_say_what_they_cost(twin: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    pixels = preprocessor(picture(640, 480))
    vision = twin.model.config.vision_config
    assert pixels.tensors["tiles"].shape == (13, 3, vision.image_size, vision.image_size)
    assert pixels.tensors["tiles"].dtype == np.uint8
    assert pixels.cost == 13 * (vision.image_size // vision.patch_size) ** 2
    assert pixels.num_tokens == 13 * twin.tokens_per_tile


def test_preprocessing_from_many_threads(preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(40 + 13 * seed, 200, seed) for seed in range(16)]
    alone = [preprocessor(each).tensors["tiles"] for each in shown]
    with ThreadPoolExecutor(4) as threads:
        together = [pixels.tensors["tiles"] for pixels in threads.map(preprocessor, shown)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_that_does_not_split(
    original: Callable[[str], Any], tmp_path: Path, family: Any, picture: Callable[..., Any]
) -> None:
    folder = altered(original("256m").folder, tmp_path, "preprocessor_config.json", do_image_splitting=False)
    twin = type(original("256m"))(folder)
    tower, preprocessor = family.open_tower(folder, "cpu", "float32"), family.open_preprocessor(folder)
    for size in SIZES:
        pixels = preprocessor(picture(*size))
        assert pixels.num_tokens == twin.tokens_per_tile
        assert torch.equal(tower.encode([pixels])[0], features_of_original(twin, picture(*size)))


def test_the_tower_holds_no_language(tower: Any, twin: Any) -> None:
    names = set(tower._half.state_dict())
    assert names == {
        name.removeprefix("model.")
        for name in twin.model.state_dict()
        if name.startswith(("model.vision_model.", "model.connector."))
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(twin: Any, family: Any, preprocessor: Any, picture: Callable[..., Any], dtype: str) -> None:
    tower = family.open_tower(twin.folder, "cpu", dtype)
    pixels = [preprocessor(picture(90, 90)), preprocessor(picture(300, 100))]
    for features, each in zip(tower.encode(pixels), pixels, strict=True):
        assert features.dtype == getattr(torch, dtype)
        assert features.shape == (each.num_tokens, tower.width)
        assert features.isfinite().all()


def test_tiles_that_do_not_fit_the_tower_are_refused(twin: Any, family: Any, tmp_path: Path) -> None:
    folder = altered(twin.folder, tmp_path, "preprocessor_config.json", max_image_size={"longest_edge": 40})
    with pytest.raises(CheckpointError, match="tiles of 40 px"):
        family.open_preprocessor(folder)


# --------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("num_tiles", [1, 2, 4, 5, 9, 10, 16])
def test_a_limit_of_tokens(
    twin: Any, family: Any, tower: Any, preprocessor: Any, picture: Callable[..., Any], num_tiles: int
) -> None:
    """The original scales to as many pixels as tiles fit: the features are those that transformers would give."""
    limit = Options(max_image_tokens=num_tiles * twin.tokens_per_tile + twin.tokens_per_tile - 1)
    limited, prompts = family.open_preprocessor(twin.folder, limit), family.open_prompt_format(twin.folder, limit)
    side = max(1, math.isqrt(num_tiles - 1)) * twin.model.config.vision_config.image_size
    most = 0
    for size in SIZES:
        pixels = limited(picture(*size))
        most = max(most, pixels.num_tokens)
        message = Message("user", (ImagePart(ImageRef("0", *size, 1, "image/png")),))
        assert prompts.build([message]).num_image_tokens == pixels.num_tokens
        batch = twin.processor.image_processor([[picture(*size)]], size={"longest_edge": side}, return_tensors="np")
        assert (values_of(pixels) == batch["pixel_values"][0]).all()
        assert len(tower.encode([pixels])[0]) == pixels.num_tokens
    assert most == (math.isqrt(num_tiles - 1) ** 2 + 1 if num_tiles > 4 else 1) * twin.tokens_per_tile
    assert limited.fingerprint != preprocessor.fingerprint


def test_a_limit_that_limits_nothing(twin: Any, family: Any, preprocessor: Any) -> None:
    wide = family.open_preprocessor(twin.folder, Options(max_image_tokens=17 * twin.tokens_per_tile))
    assert wide.fingerprint == preprocessor.fingerprint


def test_a_limit_below_one_tile_is_refused(twin: Any, family: Any) -> None:
    limit = Options(max_image_tokens=twin.tokens_per_tile - 1)
    for open_one in (family.open_preprocessor, family.open_prompt_format):
        with pytest.raises(ConfigError, match=f"a picture needs at least {twin.tokens_per_tile}"):
            open_one(twin.folder, limit)


# --------------------------------------------------------------------------------- fingerprints


def altered(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of the checkpoint with other values in one JSON file."""
    copy = Path(shutil.copytree(folder, target / "altered", dirs_exist_ok=True))
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **changes}))
    return copy


def reweighted(folder: Path, target: Path, shards: int, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the checkpoint with changed weights in that many shards."""
    import tiny_checkpoints
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    change(weights)
    copy = Path(shutil.copytree(folder, target / "reweighted", ignore=shutil.ignore_patterns("model*")))
    # Another order as well, so that other tensors are neighbours.
    tiny_checkpoints.write_weights(copy, dict(sorted(weights.items(), reverse=True)), shards)
    return copy


def bump(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[name].view(-1)[-1] += 1e-3

    return change


VISION = "model.vision_model.encoder.layers.1.mlp.fc2.bias"
CONNECTOR = "model.connector.modality_projection.proj.weight"
LANGUAGE = "model.text_model.layers.0.mlp.up_proj.weight"


def test_equal_weights_in_other_files_are_equal(twin: Any, family: Any, tower: Any, tmp_path: Path) -> None:
    copy = reweighted(twin.folder, tmp_path, 3, lambda weights: None)
    assert family.open_tower(copy, "cpu", "float32").fingerprint == tower.fingerprint


@pytest.mark.parametrize("name", [VISION, CONNECTOR])
def test_one_other_weight_is_another_tower(twin: Any, family: Any, tower: Any, tmp_path: Path, name: str) -> None:
    copy = reweighted(twin.folder, tmp_path, 1, bump(name))
    assert family.open_tower(copy, "cpu", "float32").fingerprint != tower.fingerprint


def test_language_weights_do_not_matter(twin: Any, family: Any, tower: Any, tmp_path: Path) -> None:
    copy = reweighted(twin.folder, tmp_path, 1, bump(LANGUAGE))
    assert family.open_tower(copy, "cpu", "float32").fingerprint == tower.fingerprint


def test_dtype_is_part_of_the_fingerprint(twin: Any, family: Any, tower: Any) -> None:
    assert family.open_tower(twin.folder, "cpu", "bfloat16").fingerprint != tower.fingerprint


def test_arithmetic_is_part_of_the_fingerprint_and_labels_are_not(
    twin: Any, family: Any, tower: Any, tmp_path: Path
) -> None:
    vision = json.loads((twin.folder / "config.json").read_text())["vision_config"]
    labelled = altered(twin.folder, tmp_path / "a", "config.json", vision_config={**vision, "architectures": ["X"]})
    other = altered(twin.folder, tmp_path / "b", "config.json", vision_config={**vision, "layer_norm_eps": 1e-3})
    assert family.open_tower(labelled, "cpu", "float32").fingerprint == tower.fingerprint
    assert family.open_tower(other, "cpu", "float32").fingerprint != tower.fingerprint


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({"processor_class": "Renamed"}, True),
        ({"do_image_splitting": False}, False),
        ({"image_mean": [0.5, 0.5, 0.4]}, False),
        ({"resample": 3}, False),
        ({"size": {"longest_edge": 96}}, False),
    ],
)
def test_fingerprint_of_preprocessing(
    twin: Any, family: Any, preprocessor: Any, tmp_path: Path, changes: dict[str, object], is_equal: bool
) -> None:
    copy = altered(twin.folder, tmp_path, "preprocessor_config.json", **changes)
    assert (family.open_preprocessor(copy).fingerprint == preprocessor.fingerprint) is is_equal
