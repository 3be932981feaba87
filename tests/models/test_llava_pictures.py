"""Features equal the hidden states of transformers' whole tower bit for bit; fingerprints say who may share them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_values import values_of
from llava_original import Original, recorded_reads
from PIL import Image
from tiny_llava import SIDE, build_llava

from deployments.errors import CheckpointError
from deployments.models.registry import open_family
from deployments.models.thin_pictures import MAX_ASPECT_RATIO, STRIP

pytestmark = pytest.mark.torch

FAMILY = open_family("llava")
THIN = [(1, 150), (3, 901), (904, 3), (20, 2001), (2, 2000), (1999, 2)]
SIZES = [(1, 1), (3, 1), (30, 2000), (2000, 30), (1, 100), (30, 40), (SIDE, SIDE), (1500, 700), *THIN]
TOWERS = ("clip", "siglip")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Original]:
    root = tmp_path_factory.mktemp("llava")
    return {tower: Original(build_llava(root / tower, tower=tower)) for tower in TOWERS}


@pytest.fixture(params=TOWERS)
def twin(request: pytest.FixtureRequest, originals: dict[str, Original]) -> Original:
    return originals[request.param]


@pytest.fixture
def tower(twin: Original) -> Any:
    return FAMILY.open_tower(twin.folder, "cpu", "float32")


@pytest.fixture
def preprocessor(twin: Original) -> Any:
    return FAMILY.open_preprocessor(twin.folder)


@pytest.mark.parametrize("size", SIZES)
def test_alone(
    twin: Original, tower: Any, preprocessor: Any, picture: Callable[..., Any], size: tuple[int, int]
) -> None:
    shown = picture(*size)
    pixels = preprocessor(shown)
    [features] = tower.encode([pixels])
    assert features.shape == (pixels.num_tokens, tower.width) == (16, 48)
    assert torch.equal(features, twin.features(shown))


def test_in_company(twin: Original, tower: Any, preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(*size, seed) for seed, size in enumerate(SIZES)]
    together = tower.encode([preprocessor(each) for each in shown])
    for each, features in zip(shown, together, strict=True):
        assert torch.equal(features, twin.features(each))
    assert len({features.numpy().tobytes() for features in together}) == len(SIZES)


def test_in_one_pass_as_on_an_accelerator(
    tower: Any, preprocessor: Any, picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = [preprocessor(picture(*size, seed)) for seed, size in enumerate(SIZES)]
    one_by_one = tower.encode(pixels)
    monkeypatch.setattr(tower, "shares_passes", True)
    for alone, together in zip(one_by_one, tower.encode(pixels), strict=True):
        torch.testing.assert_close(alone, together)


def test_projected_by_the_language_part_they_are_transformers_image_features(
    twin: Original, tower: Any, preprocessor: Any, picture: Callable[..., Any]
) -> None:
    language = FAMILY.open_language(twin.folder, "cpu", "float32")
    [features] = tower.encode([preprocessor(picture(150, 70))])
    with torch.inference_mode():
        assert torch.equal(language.project(features), twin.projected(picture(150, 70)))


def test_preprocessing_from_many_threads(preprocessor: Any, picture: Callable[..., Any]) -> None:
    shown = [picture(40 + 13 * seed, 200, seed) for seed in range(16)]
    alone = [preprocessor(each).tensors["picture"] for each in shown]
    with ThreadPoolExecutor(4) as threads:
        together = [pixels.tensors["picture"] for pixels in threads.map(preprocessor, shown)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(16_384, 2), (2, 16_384), (1, 10_000)])
def test_the_thinnest_pictures_do_not_become_gigabytes(
    originals: dict[str, Original], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor = FAMILY.open_preprocessor(originals["clip"].folder)
    largest: list[int] = []
    resize = Image.Image.resize

    def watched(*args: Any, **kwargs: Any) -> Any:
        resized = resize(*args, **kwargs)
        largest.append(resized.width * resized.height)
        return resized

    monkeypatch.setattr(Image.Image, "resize", watched)
    width, height = size
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    long = np.broadcast_to(ramp if width > height else ramp[:, None], (height, width))
    pixels = preprocessor(Image.fromarray(np.ascontiguousarray(long)).convert("RGB"))
    assert len(largest) >= 3
    assert max(largest) <= SIDE * MAX_ASPECT_RATIO * STRIP, "the whole would have 56 times 56 x 8192 pixels"
    # The middle, as transformers shows of it: half grey.
    mean, std = 0.48145466, 0.26862954
    assert values_of(pixels)[0, 0] == pytest.approx((127.5 / 255 - mean) / std, abs=0.05)


def test_the_thinnest_pictures_are_cut_where_transformers_cuts_them(
    originals: dict[str, Original], picture: Callable[..., Any]
) -> None:
    """Beyond the ratio at most half a pixel of the resized picture apart, so that smooth pictures are nearly equal."""
    twin, preprocessor = originals["clip"], FAMILY.open_preprocessor(originals["clip"].folder)
    for size in [(1, 1101), (1204, 1), (2, 2401)]:
        smooth = picture(8, 8).resize(size, Image.Resampling.BICUBIC)
        expected = twin.processor.image_processor([smooth], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(values_of(preprocessor(smooth)), expected, atol=0.06)


# --------------------------------------------------------------------------------- which states are features


def altered(folder: Path, target: Path, name: str = "config.json", **changes: object) -> Path:
    """A copy of the checkpoint with other values in one JSON file."""
    copy = Path(shutil.copytree(folder, target / "altered", dirs_exist_ok=True))
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **changes}))
    return copy


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("layers", [-2, -1, 0, 1, 3, -4, [-2], [1, -1], [-1, 0, 1]])
def test_every_choice_of_layers(
    twin: Original, tmp_path: Path, picture: Callable[..., Any], layers: Any, strategy: str
) -> None:
    folder = altered(twin.folder, tmp_path, vision_feature_layer=layers, vision_feature_select_strategy=strategy)
    pixels = FAMILY.open_preprocessor(folder)(picture(90, 70))
    tower = FAMILY.open_tower(folder, "cpu", "float32")
    [features] = tower.encode([pixels])
    assert features.shape == (pixels.num_tokens, tower.width)
    with torch.inference_mode():
        states = twin.model.model.vision_tower(
            torch.from_numpy(values_of(pixels)), output_hidden_states=True
        ).hidden_states
    chosen = torch.cat([states[each] for each in ([layers] if isinstance(layers, int) else layers)], dim=-1)[0]
    assert torch.equal(features, chosen[1:] if strategy == "default" else chosen)


@pytest.mark.parametrize("layers", [4, -5, [-2, 9], []])
def test_layers_that_there_are_not(twin: Original, tmp_path: Path, layers: object) -> None:
    folder = altered(twin.folder, tmp_path, vision_feature_layer=layers)
    with pytest.raises(CheckpointError, match=r"vision_feature_layer .* 3 layers"):
        FAMILY.open_tower(folder, "cpu", "float32")


def test_a_tower_of_another_kind_is_refused(twin: Original, tmp_path: Path) -> None:
    folder = altered(twin.folder, tmp_path, vision_config={"model_type": "pixtral"})
    with pytest.raises(CheckpointError, match="'pixtral'; there is clip_vision_model, siglip_vision_model"):
        FAMILY.open_tower(folder, "cpu", "float32")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"crop_size": {"height": 40, "width": 40}}, "40"),
        ({"do_center_crop": False}, "tower takes 56 x 56"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_pictures_that_do_not_fit_the_tower(
    originals: dict[str, Original], tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    folder = altered(originals["clip"].folder, tmp_path, "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=match):
        FAMILY.open_preprocessor(folder)


def test_nothing_is_read_but_the_layers_that_are_used(twin: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_reads(monkeypatch) as names:
        tower = FAMILY.open_tower(twin.folder, "cpu", "float32")
    depth = 2 if twin.model.config.vision_feature_layer == -2 else 3
    assert names
    assert all(name.startswith("vision_tower.vision_model.") for name in names)
    assert not [name for name in names if "post_layernorm" in name]
    assert {name.split("layers.")[1][0] for name in names if "layers." in name} == set("012"[:depth])
    assert len(names) == len(tower._tower.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes(twin: Original, preprocessor: Any, picture: Callable[..., Any], dtype: str) -> None:
    tower = FAMILY.open_tower(twin.folder, "cpu", dtype)
    [features] = tower.encode([preprocessor(picture(90, 90))])
    assert features.dtype == getattr(torch, dtype)
    assert features.isfinite().all()


# --------------------------------------------------------------------------------- fingerprints


def fingerprint(folder: Path, dtype: str = "float32") -> str:
    made: str = FAMILY.open_tower(folder, "cpu", dtype).fingerprint
    return made


def test_equal_towers_of_other_models_are_equal(tmp_path: Path) -> None:
    one = fingerprint(build_llava(tmp_path / "one"))
    assert fingerprint(build_llava(tmp_path / "language", language="qwen2", seed=3)) == one
    assert fingerprint(build_llava(tmp_path / "inner", names="inner")) == one
    assert fingerprint(build_llava(tmp_path / "between", names="between")) == one
    assert fingerprint(build_llava(tmp_path / "other", tower_seed=1)) != one
    assert fingerprint(build_llava(tmp_path / "siglip", tower="siglip")) != one
    assert fingerprint(tmp_path / "one", "bfloat16") != one


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({"vision_feature_layer": 2}, True),  # the same by another name
        ({"vision_feature_layer": [-2]}, True),
        ({"vision_feature_layer": 1}, False),
        ({"vision_feature_layer": [1, 2]}, False),
        ({"vision_feature_select_strategy": "full"}, False),
        ({"projector_hidden_act": "relu"}, True),  # of the generator
        ({"image_seq_length": 576}, True),
        ({"vision_config": {"projection_dim": 7, "initializer_factor": 2.0, "architectures": ["X"]}}, True),
        ({"vision_config": {"layer_norm_eps": 1e-3}}, False),
        ({"vision_config": {"hidden_act": "relu"}}, False),
        ({"vision_config": {"num_attention_heads": 2}}, False),
    ],
)
def test_what_decides_the_features_decides_the_fingerprint(
    originals: dict[str, Original], tmp_path: Path, changes: dict[str, Any], is_equal: bool
) -> None:
    folder = originals["clip"].folder
    if "vision_config" in changes:
        vision = json.loads((folder / "config.json").read_text())["vision_config"]
        changes = {"vision_config": vision | changes["vision_config"]}
    assert (fingerprint(altered(folder, tmp_path, **changes)) == fingerprint(folder)) is is_equal


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({"processor_class": "Renamed"}, True),
        ({"image_mean": [0.5, 0.5, 0.4]}, False),
        ({"resample": 2}, False),
        ({"size": {"shortest_edge": 60}}, False),
        ({"image_processor_type": "CLIPImageProcessorFast"}, True),
        ({"image_processor_type": "LlavaImageProcessor"}, True),
        ({"size": SIDE, "crop_size": SIDE}, True),
        ({"do_pad": False, "name_or_path": "x", "image_seq_length": 576, "_valid_processor_keys": ["images"]}, True),
        ({"do_rescale": False}, False),
        ({"rescale_factor": 1 / 127}, False),
    ],
)
def test_fingerprint_of_preprocessing(
    originals: dict[str, Original], tmp_path: Path, changes: dict[str, object], is_equal: bool
) -> None:
    folder = originals["clip"].folder
    copy = altered(folder, tmp_path, "preprocessor_config.json", **changes)
    prints = [FAMILY.open_preprocessor(each).fingerprint for each in (folder, copy)]
    assert (prints[0] == prints[1]) is is_equal
