"""Which moondream checkpoints are read, in which layouts; that a half reads its own tensors only; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from moondream_loop import answer
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_moondream import SMALL, Config, build_moondream

from deployments.errors import CheckpointError, ConfigError
from deployments.models.moondream_config import MoondreamConfig, read_config
from deployments.models.moondream_modules import Region, Text, Vision
from deployments.models.moondream_weights import current_name, has_old_names
from deployments.models.registry import open_family
from deployments.types import DetectTask, ImagePart, ImageRef, Message, QueryTask

pytestmark = pytest.mark.torch

MESSAGES = (Message("user", (ImagePart(ImageRef("a" * 64, 150, 100, 1, "image/png")),)),)
PARTS = ("model.vision.", "model.text.", "model.region.")


@pytest.fixture
def family() -> Any:
    return open_family("moondream")


def answers_of(family: Any, folder: Path, picture: Image.Image) -> list[Any]:
    """Features, tokens and boxes: through everything that a checkpoint holds."""
    [features] = family.open_tower(folder, "cpu", "float32").encode([family.open_preprocessor(folder)(picture)])
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", "float32")
    query = QueryTask("What is in this image?", spatial_refs=((0.1, 0.2, 0.6, 0.7),))
    tasks = (query, DetectTask("boat", 3))
    return [features.tolist(), *(answer(language, prompts.build(MESSAGES, task), features, 12) for task in tasks)]


# --------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    "options", [{"layout": "bare"}, {"layout": "old"}, {"shards": 4}, {"layout": "old", "shards": 2}]
)
def test_all_layouts_are_the_same_model(
    family: Any, tmp_path: Path, picture: Callable[..., Any], options: dict[str, Any]
) -> None:
    hub = build_moondream(tmp_path / "hub", config=SMALL)
    other = build_moondream(tmp_path / "other", config=SMALL, **options)
    assert has_old_names(other) == (options.get("layout") == "old")
    assert answers_of(family, other, picture(150, 100)) == answers_of(family, hub, picture(150, 100))


def test_old_names_are_told_from_current_ones() -> None:
    assert current_name("model.text.blocks.3.attn.qkv.weight") == "text.blocks.3.attn.qkv.weight"
    assert current_name("text_model._orig_mod.transformer.h.3.mixer.Wqkv.weight") == "text.blocks.3.attn.qkv.weight"
    assert current_name("region_model.size_decoder.fc1.bias") == "region.size_decoder.fc1.bias"


def test_buffers_that_some_files_hold_are_passed_over(family: Any, tmp_path: Path) -> None:
    folder = build_moondream(tmp_path, config=SMALL)
    rewrite(folder, {"model.text.blocks.0.kv_cache.k_cache": torch.zeros(1), "model.text.freqs_cis": torch.zeros(1)})
    assert family.open_language(folder, "cpu", "float32").num_layers == 2


def rewrite(folder: Path, more: dict[str, torch.Tensor], without: tuple[str, ...] = ()) -> Path:
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(without or ("?",))}
    save_file({**tensors, **more}, file, metadata={"format": "pt"})
    return folder


# --------------------------------------------------------------------------------- halves


def test_the_vision_half_needs_nothing_else(family: Any, tmp_path: Path, picture: Callable[..., Any]) -> None:
    whole = build_moondream(tmp_path / "whole", config=SMALL)
    half = rewrite(build_moondream(tmp_path / "half", config=SMALL), {}, without=PARTS[1:])
    pixels = family.open_preprocessor(half)(picture(90, 90))
    one, other = (family.open_tower(folder, "cpu", "float32") for folder in (whole, half))
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.encode([pixels])[0], other.encode([pixels])[0])


def test_the_language_half_needs_nothing_else(family: Any, tmp_path: Path) -> None:
    half = rewrite(build_moondream(tmp_path, config=SMALL), {}, without=PARTS[:1])
    language, prompts = family.open_language(half, "cpu", "float32"), family.open_prompt_format(half)
    assert len(answer(language, prompts.build((Message("user", ()),), QueryTask("Who?")), None, 5).token_ids) == 5


def test_no_half_reads_the_other_s_tensors(family: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    folder = build_moondream(tmp_path, config=SMALL)
    read: list[str] = []

    class Header:
        def __init__(self, shape: list[int]) -> None:
            self.get_shape = lambda: shape

    class Watched:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._opened = original(*args, **kwargs)

        def __enter__(self) -> Watched:
            self._file = self._opened.__enter__()
            return self

        def __exit__(self, *exception: Any) -> None:
            self._opened.__exit__(*exception)

        def keys(self) -> Any:
            return self._file.keys()

        def get_slice(self, name: str) -> Header:
            return Header(self._file.get_slice(name).get_shape())

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            tensor: torch.Tensor = self._file.get_tensor(name)
            return tensor

    original = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Watched)
    family.open_tower(folder, "cpu", "float32")
    assert {name.split(".")[1] for name in read} == {"vision"}
    read.clear()
    family.open_language(folder, "cpu", "float32")
    assert {name.split(".")[1] for name in read} == {"text", "region"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_converted(family: Any, tmp_path: Path, dtype: str) -> None:
    folder = build_moondream(tmp_path, config=SMALL, dtype=torch.bfloat16)
    language, prompts = family.open_language(folder, "cpu", dtype), family.open_prompt_format(folder)
    assert language.dtype == getattr(torch, dtype)
    assert language.embed(torch.tensor([[1]])).dtype == language.dtype
    assert language.embed_place((0.5,)).dtype == language.embed_place((0.5, 0.25)).dtype == language.dtype
    tasks = (QueryTask("Who?", reasoning=True), QueryTask("Who?"))
    for task in tasks:
        assert answer(language, prompts.build((Message("user", ()),), task), None, 5).token_ids


def test_an_unknown_dtype_is_refused(family: Any, tmp_path: Path) -> None:
    folder = build_moondream(tmp_path, config=SMALL)
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        family.open_tower(folder, "cpu", "int4")


# --------------------------------------------------------------------------------- broken ones


def test_missing_tensors_are_named(family: Any, tmp_path: Path) -> None:
    folder = rewrite(build_moondream(tmp_path, config=SMALL), {}, without=("model.vision.blocks.1.mlp", "model.region"))
    with pytest.raises(CheckpointError, match=r"lacks 4 tensors of the vision part.*vision\.blocks\.1\.mlp\.fc1\.bias"):
        family.open_tower(folder, "cpu", "float32")
    with pytest.raises(CheckpointError, match="of the region part"):
        family.open_language(folder, "cpu", "float32")


def test_tensors_without_a_place_are_named(family: Any, tmp_path: Path) -> None:
    folder = rewrite(build_moondream(tmp_path, config=SMALL), {"model.text.blocks.2.tau": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"text part that have no place in it, such as text\.blocks\.2\.tau"):
        family.open_language(folder, "cpu", "float32")


def test_other_shapes_are_named(family: Any, tmp_path: Path) -> None:
    folder = rewrite(build_moondream(tmp_path, config=SMALL), {"model.vision.post_ln.bias": torch.zeros(31)})
    with pytest.raises(CheckpointError, match=r"model\.vision\.post_ln\.bias has the shape \(31,\).*\(32,\)"):
        family.open_tower(folder, "cpu", "float32")


# --------------------------------------------------------------------------------- config.json


def written(folder: Path, config: Config | object, model_type: str = "moondream1") -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "config": config}))
    return folder


def test_an_empty_configuration_is_the_2b_model(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, {}))
    assert config == MoondreamConfig()
    assert (config.text.dim, config.vision.enc_dim, config.vision.image_tokens) == (2048, 1152, 729)
    with torch.device("meta"):
        parts = (Vision(config.vision), Text(config.text), Region(config.region))
    numbers = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    assert f"{sum(numbers) / 1e9:.2f}" == "1.93"  # billions, as published


def test_old_configurations_name_no_kv_heads(tmp_path: Path) -> None:
    half = {"text": {"dim": 1024, "n_heads": 16}, "region": {"dim": 1024}, "vision": {"proj_out_dim": 1024}}
    assert read_config(written(tmp_path, half)).text.n_kv_heads == 16


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("text", {"n_heads": 4}, "dim 128 is not 4 heads of 64"),
        ("text", {"n_heads": 2, "n_kv_heads": 4}, "2 heads over 4"),
        ("text", {"prefix_attn": 730}, r"prefix_attn is 730, but a picture takes 1 \+ 8 x 8 = 65"),
        ("text", {"max_context": 65}, "no room"),
        ("text", {"dim": 192, "n_heads": 3, "n_kv_heads": 1}, "proj_out_dim 128 is not the language part's dim 192"),
        ("text", {"group_size": 128}, "quantised"),
        ("text", {"dim": 0}, "whole number from 1 up"),
        ("text", {"dim": "128"}, "whole number"),
        ("vision", {"crop_size": 65}, "no multiple of patches of 8 px"),
        ("vision", {"overlap_margin": 4}, "none left between two margins of 4"),
        ("vision", {"in_channels": 4}, "pictures have 3"),
        ("vision", {"enc_n_heads": 3}, "no multiple of 3 heads"),
        ("vision", {"depth": 3}, "unknown key depth"),
        ("region", {"dim": 64}, "dim 64 is not the language part's dim 128"),
        ("region", {"size_feat_dim": 63}, "size_feat_dim 63 cannot be halved"),
    ],
)
def test_sizes_that_cannot_work(tmp_path: Path, section: str, changes: dict[str, object], says: str) -> None:
    config = deepcopy(SMALL)
    config[section].update(changes)
    with pytest.raises(CheckpointError, match=says):
        read_config(written(tmp_path, config))


@pytest.mark.parametrize(
    ("config", "says"),
    [({"audio": {}}, "unknown key audio"), ([], "should be an object"), ({"text": []}, "text in config.json")],
)
def test_configurations_of_another_form(tmp_path: Path, config: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_config(written(tmp_path, config))


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="moondream reads moondream1"):
        read_config(written(tmp_path, {}, model_type="llava"))
