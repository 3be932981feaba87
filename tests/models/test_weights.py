"""Checkpoints are found where they are said to be, and what is wrong with one is said with its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import CheckpointError
from deployments.models.weights import fingerprint_values, locate_checkpoint, read_json, require_files

# --------------------------------------------------------------------------------- finding


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate_checkpoint("owner/name", None) == tmp_path / "owner" / "name"
    assert locate_checkpoint(str(tmp_path / "owner"), None) == tmp_path / "owner"


@pytest.mark.parametrize(
    "checkpoint", ["/no/such/folder", "./models/x", "a/b/c", "name", "owner/", "../owner/name", ""]
)
def test_neither_folder_nor_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither a folder .* nor a hub id"):
        locate_checkpoint(checkpoint, None)


def test_a_hub_id_needs_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="pinned revision") as caught:
        locate_checkpoint("owner/name", None)
    assert str(tmp_path / "owner" / "name") in str(caught.value)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        locate_checkpoint(str(tmp_path), "main")


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    require_files(tmp_path, ["config.json"])
    with pytest.raises(CheckpointError, match=r"lacks a\.json, b\.json \(there: config\.json\)"):
        require_files(tmp_path, ["a.json", "config.json", "b.json"])
    with pytest.raises(CheckpointError, match="no such folder"):
        require_files(tmp_path / "gone", ["a.json"])


@pytest.mark.parametrize("content", [b'{"model_type": ', b"\xff\xfe", b"[1]"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(tmp_path, "config.json")


def test_values_have_one_fingerprint_in_any_order() -> None:
    assert fingerprint_values({"a": 1, "b": [2]}) == fingerprint_values({"b": [2], "a": 1})
    assert fingerprint_values({"a": 1}) != fingerprint_values({"a": 2})


# --------------------------------------------------------------------------------- loading


@pytest.fixture
def copy(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda variant: Path(shutil.copytree(tiny_checkpoint(variant), tmp_path / variant))


def open_both(folder: Path) -> list[str]:
    """What each half says of the folder."""
    from deployments.models.registry import open_family

    said = []
    for open_half in (open_family("smolvlm").open_tower, open_family("smolvlm").open_language):
        with pytest.raises(CheckpointError) as caught:
            open_half(folder, "cpu", "float32")
        said.append(str(caught.value))
    return said


@pytest.mark.torch
@pytest.mark.parametrize("length", [0, 4, 1000, 900_000])
def test_a_cut_file_is_named(copy: Callable[[str], Path], length: int) -> None:
    folder = copy("256m")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:length])
    for said in open_both(folder):
        assert f"model.safetensors ({length} bytes) is cut short" in said


@pytest.mark.torch
def test_a_git_lfs_pointer_is_no_weight_file(copy: Callable[[str], Path]) -> None:
    folder = copy("256m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert all("git lfs pull" in said for said in open_both(folder))


@pytest.mark.torch
def test_a_missing_file_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("256m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert all("lacks model.safetensors" in said for said in open_both(folder))


@pytest.mark.torch
def test_a_missing_shard_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("instruct")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert all("lacks model-00002-of-00002.safetensors" in said for said in open_both(folder))


@pytest.mark.torch
def test_an_index_without_weights(copy: Callable[[str], Path]) -> None:
    folder = copy("instruct")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert all("has no weight_map" in said for said in open_both(folder))


def rewrite_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import tiny_checkpoints
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    tiny_checkpoints.write_weights(folder, weights, 1)


@pytest.mark.torch
def test_missing_tensors_are_not_made_up(copy: Callable[[str], Path]) -> None:
    folder = copy("256m")

    def drop(weights: dict[str, Any]) -> None:
        del weights["model.connector.modality_projection.proj.weight"]
        del weights["model.text_model.norm.weight"]

    rewrite_weights(folder, drop)
    of_tower, of_language = open_both(folder)
    assert "connector.modality_projection.proj.weight" in of_tower
    assert "norm.weight" in of_language


@pytest.mark.torch
def test_tensors_of_another_shape_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("256m")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["intermediate_size"] += 8
    config["text_config"]["intermediate_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    of_tower, of_language = open_both(folder)
    assert str(folder) in of_tower
    assert str(folder) in of_language


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("state", ["gone", "broken"])
def test_every_file_of_the_prompt_format(copy: Callable[[str], Path], name: str, state: str) -> None:
    from deployments.models.registry import open_family

    folder = copy("256m")
    if state == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_text('{"model_type": "idefics3",')
    with pytest.raises(CheckpointError) as caught:
        open_family("smolvlm").open_prompt_format(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.torch
def test_fingerprints_see_names_dtypes_shapes_and_bytes() -> None:
    import torch

    from deployments.models.weights import fingerprint_tensors

    base = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor(1.0)}
    same = {"b": base["b"].clone(), "a": base["a"].t().contiguous().t()}
    assert fingerprint_tensors(same) == fingerprint_tensors(base)
    for other in (
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"].view(torch.int32), "b": base["b"]},
        {"a": base["a"] + 1e-6, "b": base["b"]},
        {"a": base["a"].bfloat16(), "b": base["b"]},
        {"a": base["a"]},
    ):
        assert fingerprint_tensors(other) != fingerprint_tensors(base)
