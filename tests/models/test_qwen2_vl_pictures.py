"""Features of pictures equal transformers' `get_image_features` bit for bit, alone and in company."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from deployments.errors import CheckpointError, ConfigError, InvalidImage
from deployments.models.family import Options
from deployments.models.registry import open_family
from deployments.types import ImagePart, ImageRef, Message

if TYPE_CHECKING:
    from qwen2_vl_original import Original

pytestmark = pytest.mark.torch

SIZES = [(1, 1), (1, 3), (3, 1), (200, 1), (30, 40), (30, 2000), (64, 64), (500, 200), (333, 71), (1500, 700)]
LIMITS = Options(max_image_tokens=60)


@pytest.fixture(scope="module", params=["2b", "7b"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    return Original(build_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"), variant=request.param, seed=0))


@pytest.fixture
def family() -> Any:
    return open_family("qwen2_vl")


@pytest.fixture
def tower(family: Any, twin: Original) -> Any:
    return family.open_tower(twin.folder, "cpu", "float32")


@pytest.fixture
def preprocessor(family: Any, twin: Original) -> Any:
    return family.open_preprocessor(twin.folder)


@pytest.mark.parametrize("size", SIZES)
def test_alone(
    twin: Original, tower: Any, preprocessor: Any, picture: Callable[..., Any], size: tuple[int, int]
) -> None:
    pixels = preprocessor(picture(*size))
    [features] = tower.encode([pixels])
    assert features.shape == (pixels.num_tokens, tower.width)
    assert torch.equal(features, twin.features(picture(*size)))


def test_in_company(twin: Original, tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    together = tower.encode([preprocessor(each) for each in shown])
    assert len({len(features) for features in together}) > 5
    for each, features in zip(shown, together, strict=True):
        assert torch.equal(features, twin.features(each))


def test_in_one_pass_as_on_an_accelerator(
    tower: Any, preprocessor: Any, picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [preprocessor(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    one_by_one = tower.encode(pixels)
    monkeypatch.setattr(tower, "shares_passes", True)
    for alone, together in zip(one_by_one, tower.encode(pixels), strict=True):
        torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("colour", ["black", "white"])
def test_a_picture_of_one_colour(twin: Original, tower: Any, preprocessor: Any, colour: str) -> None:
    flat = Image.new("RGB", (90, 61), colour)
    assert torch.equal(tower.encode([preprocessor(flat)])[0], twin.features(flat))


def test_patches_of_zeros_are_still_patches(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    pixels = preprocessor(picture(90, 90))
    pixels = replace(pixels, tensors={**pixels.tensors, "values": np.zeros((3, 256), np.float32)})
    [features] = tower.encode([pixels])
    assert len(features) == pixels.num_tokens


def test_different_pictures_have_different_features(tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    one, other = tower.encode([preprocessor(picture(90, 90, seed)) for seed in (1, 2)])
    assert not torch.equal(one, other)


def test_pixels_say_what_they_cost(preprocessor: Any, picture: Callable[..., Any]) -> None:
    pixels = preprocessor(picture(640, 480))
    assert (pixels.num_tokens, pixels.cost) == (23 * 17, 46 * 34)
    assert pixels.tensors["patches"].shape == (46 * 34, 3 * 2 * 14 * 14)
    assert pixels.tensors["patches"].dtype == np.uint8
    assert pixels.tensors["grid_thw"].tolist() == [1, 34, 46]


def test_preprocessing_from_many_threads(preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(40 + 13 * seed, 200, seed) for seed in range(16)]
    alone = [preprocessor(each).tensors["patches"] for each in shown]
    with ThreadPoolExecutor(4) as threads:
        together = [pixels.tensors["patches"] for pixels in threads.map(preprocessor, shown)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (201, 1)])
def test_both_halves_refuse_a_picture_too_thin(
    twin: Original, family: Any, preprocessor: Any, picture: Callable[..., Any], size: tuple[int, int]
) -> None:
    prompts = family.open_prompt_format(twin.folder)
    with pytest.raises(InvalidImage, match="too thin") as of_pixels:
        preprocessor(picture(*size))
    with pytest.raises(InvalidImage, match="too thin") as of_prompt:
        prompts.build([Message("user", (ImagePart(ImageRef("0", *size, 1, "image/png")),))])
    assert of_pixels.value.message == of_prompt.value.message
    with pytest.raises(ValueError, match="aspect ratio"):
        twin.features(picture(*size))


# --------------------------------------------------------------------------------- pixel budget


@pytest.mark.parametrize("size", SIZES)
def test_a_smaller_budget(
    twin: Original, family: Any, tower: Any, picture: Callable[..., Any], size: tuple[int, int]
) -> None:
    from qwen2_vl_original import Original

    limited = Original(twin.folder, max_pixels=60 * 784)
    pixels = family.open_preprocessor(twin.folder, LIMITS)(picture(*size))
    [features] = tower.encode([pixels])
    assert torch.equal(features, limited.features(picture(*size)))
    prompt = family.open_prompt_format(twin.folder, LIMITS).build(
        [Message("user", (ImagePart(ImageRef("0", *size, 1, "image/png")),))]
    )
    assert prompt.num_image_tokens == pixels.num_tokens


def test_the_default_budget_and_the_checkpoints_own(
    twin: Original, family: Any, picture: Callable[..., Any], tmp_path: Path
) -> None:
    large = picture(2000, 1400)
    assert 1200 < family.open_preprocessor(twin.folder)(large).num_tokens <= 1280
    raised = family.open_preprocessor(twin.folder, Options(max_image_tokens=20_000))
    assert raised(large).num_tokens == 71 * 50
    own = altered(twin.folder, tmp_path, "preprocessor_config.json", max_pixels=300 * 784)
    for options in (Options(), Options(max_image_tokens=20_000)):
        assert 270 < family.open_preprocessor(own, options)(large).num_tokens <= 300


def test_a_budget_below_the_checkpoints_minimum(
    twin: Original, family: Any, picture: Callable[..., Any], tmp_path: Path
) -> None:
    own = altered(twin.folder, tmp_path, "preprocessor_config.json", min_pixels=100 * 784)
    assert family.open_preprocessor(own)(picture(20, 20)).num_tokens == 100
    assert family.open_preprocessor(own, Options(max_image_tokens=9))(picture(20, 20)).num_tokens == 9


def test_a_budget_of_nothing_is_refused(twin: Original, family: Any) -> None:
    with pytest.raises(ConfigError, match="max_image_tokens is 0"):
        family.open_preprocessor(twin.folder, Options(max_image_tokens=0))


# --------------------------------------------------------------------------------- checkpoints


def altered(folder: Path, target: Path, name: str, **changes: object) -> Path:
    """A copy of the checkpoint with other values in one JSON file."""
    copy = Path(shutil.copytree(folder, target / "altered", dirs_exist_ok=True))
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **changes}))
    return copy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 16}, r"\(16, 2, 2\) .* do not fit"),
        ({"merge_size": 1}, r"\(14, 1, 2\) .* do not fit"),
        ({"temporal_patch_size": 1}, r"\(14, 2, 1\) .* do not fit"),
        ({"do_resize": False}, "must resize"),
        ({"max_pixels": "many"}, "min_pixels and max_pixels above 0"),
        ({"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 9}}, "min_pixels and max_pixels above 0"),
        ({"min_pixels": 0}, "min_pixels and max_pixels above 0"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    twin: Original, family: Any, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    folder = altered(twin.folder, tmp_path, "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=said):
        family.open_preprocessor(folder)
    with pytest.raises(CheckpointError, match=said):
        family.open_prompt_format(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(twin: Original, family: Any, preprocessor: Any, picture: Callable[..., Any], dtype: str) -> None:
    tower = family.open_tower(twin.folder, "cpu", dtype)
    pixels = [preprocessor(picture(90, 90)), preprocessor(picture(300, 100))]
    for features, each in zip(tower.encode(pixels), pixels, strict=True):
        assert features.dtype == getattr(torch, dtype)
        assert features.shape == (each.num_tokens, tower.width)
        assert features.isfinite().all()


# --------------------------------------------------------------------------------- fingerprints

VISION = "visual.blocks.1.mlp.{}.bias"
MERGER = "visual.merger.mlp.2.bias"
LANGUAGE = "model.layers.0.mlp.up_proj.weight"


def reweighted(folder: Path, target: Path, name: str | None) -> Path:
    """A copy of the checkpoint in one shard, with one value changed in the tensor of that name."""
    import tiny_checkpoints
    from safetensors.torch import load_file

    weights = {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
    if name is not None:
        weights[name].view(-1)[-1] += 1e-3
    copy = Path(shutil.copytree(folder, target / "reweighted", ignore=shutil.ignore_patterns("model*")))
    tiny_checkpoints.write_weights(copy, weights, 1)
    return copy


@pytest.mark.parametrize(("name", "is_equal"), [(None, True), (LANGUAGE, True), (VISION, False), (MERGER, False)])
def test_fingerprint_of_weights(
    twin: Original, family: Any, tower: Any, tmp_path: Path, name: str | None, is_equal: bool
) -> None:
    if name is not None:
        name = name.format("fc2" if twin.model.config.model_type == "qwen2_vl" else "down_proj")
    other = family.open_tower(reweighted(twin.folder, tmp_path, name), "cpu", "float32")
    assert (other.fingerprint == tower.fingerprint) is is_equal


def test_dtype_and_arithmetic_are_part_of_the_fingerprint(
    twin: Original, family: Any, tower: Any, tmp_path: Path
) -> None:
    assert family.open_tower(twin.folder, "cpu", "bfloat16").fingerprint != tower.fingerprint
    vision = json.loads((twin.folder / "config.json").read_text())["vision_config"]
    other = altered(twin.folder, tmp_path, "config.json", vision_config={**vision, "hidden_act": "gelu"})
    assert family.open_tower(other, "cpu", "float32").fingerprint != tower.fingerprint


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({"processor_class": "Renamed"}, True),
        ({"max_pixels": 1280 * 784}, True),
        ({"max_pixels": 1000 * 784}, False),
        ({"min_pixels": 784}, False),
        ({"image_mean": [0.5, 0.5, 0.4]}, False),
        ({"resample": 1}, False),
    ],
)
def test_fingerprint_of_preprocessing(
    twin: Original, family: Any, preprocessor: Any, tmp_path: Path, changes: dict[str, object], is_equal: bool
) -> None:
    copy = altered(twin.folder, tmp_path, "preprocessor_config.json", **changes)
    assert (family.open_preprocessor(copy).fingerprint == preprocessor.fingerprint) is is_equal


def test_the_budget_is_part_of_the_fingerprint(twin: Original, family: Any, preprocessor: Any) -> None:
    assert family.open_preprocessor(twin.folder, LIMITS).fingerprint != preprocessor.fingerprint
    default = family.open_preprocessor(twin.folder, Options(max_image_tokens=1280))
    assert default.fingerprint == preprocessor.fingerprint
