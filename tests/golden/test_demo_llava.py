"""Holds the two demo LLaVAs to their answers, sizes and recipes, and to being one tower with two language halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch

CHECKPOINTS = Path(__file__).parents[2] / "demo" / "checkpoints"
MODELS = ("llava", "llava_qwen2")


@pytest.mark.parametrize("model", MODELS)
def test_answers_stay(model: str, hold: Callable[[str], list[tuple[str, str, str]]]) -> None:
    held = hold(model)
    assert [(question, found) for question, _, found in held] == [(question, right) for question, right, _ in held]


@pytest.mark.parametrize("model", MODELS)
def test_folder_is_whole(model: str, check_folder: Callable[[str], None]) -> None:
    check_folder(model)


def test_towers_are_one_byte_for_byte() -> None:
    from safetensors.torch import load_file

    one, other = (load_file(CHECKPOINTS / model / "model.safetensors") for model in MODELS)
    names = {name for name in one if name.startswith("vision_tower.")}
    assert names
    assert names == {name for name in other if name.startswith("vision_tower.")}
    assert all(one[name].dtype == other[name].dtype and one[name].equal(other[name]) for name in names)
    configs, preprocessing = ([_read(m, f) for m in MODELS] for f in ("config.json", "preprocessor_config.json"))
    assert configs[0]["vision_config"] == configs[1]["vision_config"]
    assert preprocessing[0] == preprocessing[1]


def test_language_halves_differ() -> None:
    assert [_read(model, "config.json")["text_config"]["model_type"] for model in MODELS] == ["llama", "qwen2"]


@pytest.mark.parametrize("model", MODELS)
def test_projector_was_trained_by_the_command(model: str) -> None:
    assert _read(model, "training.json")["identity"]
    assert _read(model, "recipe.json")["projector_options"]


def test_trained_rows_are_those_of_transformers() -> None:
    import torch
    from llava_tower import see
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINTS / "llava", dtype=torch.float32).model.eval()
    values = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        served = model.get_image_features(values, vision_feature_layer=-2, vision_feature_select_strategy="default")
        trained = model.multi_modal_projector(see(model.vision_tower, values))
    torch.testing.assert_close(trained, torch.stack(list(served.pooler_output)))


def _read(model: str, file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CHECKPOINTS / model / file).read_text(encoding="utf-8"))
    return content
