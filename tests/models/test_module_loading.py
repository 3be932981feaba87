"""What a checkpoint lacks is told before anything is loaded, instead of being filled with random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_llava import build_llava
from tiny_qwen2_vl import build_qwen2_vl
from transformers import PreTrainedModel

from deployments.errors import CheckpointError
from deployments.models.registry import open_family

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("halves")
    return {
        "smolvlm": tiny_checkpoint("256m"),
        "qwen2_vl": build_qwen2_vl(root / "qwen2_vl", variant="2b", seed=0),
        "llava": build_llava(root / "llava"),
    }


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)


def altered(folder: Path, target: Path, **changes: Any) -> Path:
    copy = Path(shutil.copytree(folder, target / "copy"))
    content = json.loads((copy / "config.json").read_text())
    kept = {key: value for key, value in {**content, **changes}.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(kept))
    return copy


@pytest.mark.parametrize("name", ["smolvlm", "llava"])
@pytest.mark.usefixtures("no_loading")
def test_without_its_text_config_a_checkpoint_stands_for_billions_of_numbers(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = altered(folders[name], tmp_path, text_config=None)
    with pytest.raises(CheckpointError, match="lacks fitting tensors for") as caught:
        open_family(name).open_language(folder, "cpu", "float32")
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_vl", "llava"])
@pytest.mark.usefixtures("no_loading")
def test_without_its_vision_config(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = altered(folders[name], tmp_path, vision_config=None)
    with pytest.raises(CheckpointError, match="lacks fitting tensors for"):
        open_family(name).open_tower(folder, "cpu", "float32")


@pytest.mark.usefixtures("no_loading")
def test_one_layer_too_many_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = altered(folders["qwen2_vl"], tmp_path, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"for 12 parameters, such as model\.layers\.\d"):
        open_family("qwen2_vl").open_language(folder, "cpu", "float32")


def test_sizes_that_make_no_module(folders: dict[str, Path], tmp_path: Path) -> None:
    text = json.loads((folders["llava"] / "config.json").read_text())["text_config"]
    folder = altered(folders["llava"], tmp_path, text_config={**text, "intermediate_size": -1})
    with pytest.raises(CheckpointError, match=r"sizes in config\.json"):
        open_family("llava").open_language(folder, "cpu", "float32")
