"""Image processors are read wherever transformers saves them, and settings that cannot work are found at opening."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_llava import SIDE, build_llava
from tiny_qwen2_vl import build_qwen2_vl

from deployments.errors import CheckpointError
from deployments.models.image_processor import read_image_processor, settings_of
from deployments.models.registry import open_family
from deployments.types import ImagePart, ImageRef, Message, TextPart

pytestmark = pytest.mark.torch

FAMILIES = ("smolvlm", "qwen2_vl", "llava")


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {
        "smolvlm": tiny_checkpoint("256m"),
        "qwen2_vl": build_qwen2_vl(root / "qwen2_vl", variant="2b", seed=0),
        "llava": build_llava(root / "llava"),
    }


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "copy"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def save_with_processor(folder: Path) -> None:
    """As transformers 5 saves a processor: all in processor_config.json, and the chat template in a file of its own."""
    settings = read_image_processor(folder).to_dict()
    (folder / "preprocessor_config.json").unlink()
    old = folder / "processor_config.json"
    about = json.loads(old.read_text()) if old.is_file() else {}
    old.write_text(json.dumps({**about, "image_processor": settings}))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(template)
    rewrite(folder / "tokenizer_config.json", lambda content: content.pop("chat_template", None))


def ask(width: int, height: int) -> list[Message]:
    picture = ImagePart(ImageRef("0" * 64, width, height, 1, "image/png"))
    return [Message("user", (picture, TextPart("What is it?")))]


# --------------------------------------------------------------------------------- where it is


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_by_transformers_5(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    family, folder = open_family(name), copied(folders[name], tmp_path)
    save_with_processor(folder)
    picture = Image.effect_noise((150, 70), 90).convert("RGB")
    old, new = (family.open_preprocessor(each) for each in (folders[name], folder))
    assert old.fingerprint == new.fingerprint
    for tensor, expected in old(picture).tensors.items():
        assert (new(picture).tensors[tensor] == expected).all()
    old_prompt, new_prompt = (family.open_prompt_format(each).build(ask(150, 70)) for each in (folders[name], folder))
    assert old_prompt.token_ids == new_prompt.token_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_none(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = copied(folders[name], tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks preprocessor_config\.json"):
        open_family(name).open_preprocessor(folder)


# --------------------------------------------------------------------------------- what of it shapes pixels


def test_settings_are_what_the_code_takes(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["llava"], tmp_path)
    rewrite(folder / "preprocessor_config.json", lambda content: content.update(name_or_path="x", do_pad=False))
    settings = settings_of(read_image_processor(folder))
    assert settings == settings_of(read_image_processor(folders["llava"]))
    assert settings["size"] == {"shortest_edge": SIDE}
    assert {"do_resize", "resample", "image_mean", "crop_size", "rescale_factor", "code"} <= set(settings)
    assert not {"do_pad", "do_convert_rgb", "processor_class", "name_or_path"} & set(settings)


def test_the_nearest_neighbour_is_a_setting(folders: dict[str, Path], tmp_path: Path) -> None:
    """`resample: 0`, which is neither off nor absent."""
    folder = copied(folders["llava"], tmp_path)
    rewrite(folder / "preprocessor_config.json", lambda content: content.update(resample=0))
    assert settings_of(read_image_processor(folder))["resample"] == 0


# --------------------------------------------------------------------------------- what cannot work


NONSENSE: list[tuple[str, str, dict[str, Any], str]] = [
    ("smolvlm", "preprocessor_config.json", {"max_image_size": None}, "max_image_size"),
    ("smolvlm", "preprocessor_config.json", {"max_image_size": {}}, "max_image_size"),
    ("smolvlm", "preprocessor_config.json", {"max_image_size": {"longest_edge": -1}}, "max_image_size.longest_edge -1"),
    ("smolvlm", "preprocessor_config.json", {"size": {"longest_edge": -1}}, "size.longest_edge -1"),
    ("smolvlm", "config.json", {"scale_factor": 0}, "scale_factor 0"),
    ("smolvlm", "config.json", {"vision_config": {"patch_size": 0}}, "patch_size 0"),
    ("smolvlm", "config.json", {"vision_config": {"patch_size": []}}, "patch_size"),
    ("qwen2_vl", "config.json", {"vision_config": {"patch_size": 0}}, "do not fit a tower"),
    ("llava", "config.json", {"vision_config": {"patch_size": 0}}, "patch_size 0"),
    ("llava", "config.json", {"vision_config": {"patch_size": None}}, "patch_size None"),
    ("llava", "config.json", {"vision_config": {"image_size": None}}, "image_size None"),
    ("llava", "generation_config.json", {"eos_token_id": -1}, "eos_token_id, not -1"),
    ("llava", "generation_config.json", {"eos_token_id": True}, "eos_token_id, not True"),
    ("llava", "config.json", {"image_token_index": -1}, "no token with the id -1"),
]


@pytest.mark.parametrize(("name", "file", "changes", "said"), NONSENSE)
def test_nonsense_is_found_when_the_prompt_format_opens(
    folders: dict[str, Path], tmp_path: Path, name: str, file: str, changes: dict[str, Any], said: str
) -> None:
    folder = copied(folders[name], tmp_path)
    rewrite(folder / file, lambda content: merge(content, changes))
    with pytest.raises(CheckpointError, match=said) as caught:
        open_family(name).open_prompt_format(folder)
    assert str(folder) in caught.value.message


PIXELS: list[tuple[str, dict[str, Any]]] = [
    ("llava", {"crop_size": None}),
    ("llava", {"image_mean": []}),
    ("llava", {"image_std": [0.5]}),
    ("llava", {"resample": 77}),
    ("llava", {"rescale_factor": "x"}),
    ("smolvlm", {"image_mean": []}),
    ("smolvlm", {"size": {"longest_edge": -1}}),
    ("qwen2_vl", {"image_mean": [0.5]}),
    ("qwen2_vl", {"patch_size": 0}),
]


@pytest.mark.parametrize(("name", "changes"), PIXELS)
def test_nonsense_is_found_when_the_preprocessor_opens(
    folders: dict[str, Path], tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    folder = copied(folders[name], tmp_path)
    rewrite(folder / "preprocessor_config.json", lambda content: content.update(changes))
    with pytest.raises(CheckpointError, match=str(folder)):
        open_family(name).open_preprocessor(folder)


def merge(content: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and value and isinstance(content.get(key), dict):
            merge(content[key], value)
        else:
            content[key] = value
