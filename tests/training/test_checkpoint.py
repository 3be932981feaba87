"""The folder that comes out is the base with another projector, and is never there by halves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.torch

TinyLlava = Callable[..., Path]
CASES = {
    "one file": {"language": "qwen2"},
    "shards": {"language": "llama"},
    "inner names": {"language": "llama", "names": "inner"},
    "names between": {"language": "mistral", "names": "between"},
}


def other_projector(folder: Path, seed: int = 0) -> dict[str, object]:
    import torch

    from deployments.training.checkpoint import read_projector

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in read_projector(folder).items()}


def draft_of(base: Path, tmp_path: Path, projector: dict[str, object]) -> Path:
    from deployments.training.checkpoint import draft_checkpoint

    draft_checkpoint(base, tmp_path / "draft", projector, {"identity": {}})
    return tmp_path / "draft"


def all_tensors(folder: Path) -> dict[str, object]:
    from safetensors import safe_open

    from deployments.models.weights import list_tensors

    tensors = {}
    for name, file in list_tensors(folder).items():
        with safe_open(folder / file, framework="pt") as opened:
            tensors[name] = opened.get_tensor(name)
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_only_the_projector_changes(tiny_llava: TinyLlava, tmp_path: Path, case: str, dtype: str) -> None:
    import torch

    from deployments.training.checkpoint import read_projector

    base = tiny_llava(**CASES[case], dtype=getattr(torch, dtype))
    projector = other_projector(base)
    draft = draft_of(base, tmp_path, projector)
    before, after = all_tensors(base), all_tensors(draft)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "multi_modal_projector." in name}
    assert all(before[name].dtype == after[name].dtype == getattr(torch, dtype) for name in before)
    rounded = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in projector.items()}
    written = read_projector(draft)
    assert all(torch.equal(written[name], rounded[name]) for name in rounded)


def test_other_files_are_the_same_bytes(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base = tiny_llava()
    draft = draft_of(base, tmp_path, other_projector(base))
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in draft.iterdir()} == names | {"training.json"}
    different = [name for name in names if (base / name).read_bytes() != (draft / name).read_bytes()]
    weights = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(different) == {file for name, file in weights.items() if "multi_modal_projector" in name}


def test_links_of_a_hub_snapshot_are_followed(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base, snapshot = tiny_llava(), tmp_path / "snapshot"
    snapshot.mkdir()
    for path in base.iterdir():
        (snapshot / path.name).symlink_to(path)
    draft = draft_of(snapshot, tmp_path, other_projector(base))
    assert not any(path.is_symlink() for path in draft.iterdir())
    assert {path.name for path in draft.iterdir()} >= {path.name for path in base.iterdir()}


def test_other_formats_and_old_records_stay_behind(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llava(), tmp_path / "base"))
    for name in ("pytorch_model.bin", "consolidated.safetensors", "metrics.jsonl", ".gitattributes", "README.md"):
        (base / name).write_bytes(b"old")
    (base / "extra").mkdir()
    (base / "extra" / "notes.txt").write_text("kept")
    draft = draft_of(base, tmp_path, other_projector(base))
    there = {str(path.relative_to(draft)) for path in draft.rglob("*")}
    assert {"README.md", "extra/notes.txt"} <= there
    assert not there & {"pytorch_model.bin", "consolidated.safetensors", "metrics.jsonl", ".gitattributes"}


def test_the_fingerprint_is_of_all_that_is_taken_over(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    from deployments.training.checkpoint import fingerprint_folder

    base = Path(shutil.copytree(tiny_llava(), tmp_path / "base"))
    before = fingerprint_folder(base)
    assert before == fingerprint_folder(tiny_llava())
    (base / ".hidden").write_text("no part of it")
    assert fingerprint_folder(base) == before
    (base / "chat_template.json").write_text('{"chat_template": "x"}')
    assert fingerprint_folder(base) != before


def test_numbers_that_do_not_fit_the_dtype_are_refused(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    import torch

    base = tiny_llava(dtype=torch.float16)
    projector = other_projector(base)
    projector["linear_1.bias"][0] = 1e6
    with pytest.raises(ConfigError, match="does not fit into the checkpoint's F16"):
        draft_of(base, tmp_path, projector)


def test_a_checkpoint_without_projector(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from deployments.training.checkpoint import read_projector

    base = Path(shutil.copytree(tiny_llava(language="qwen2"), tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    save_file({name: weights[name] for name in weights if "projector" not in name}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensors named multi_modal_projector\."):
        read_projector(base)


def test_publishing_replaces_the_configuration_last(
    tiny_llava: TinyLlava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.training.checkpoint import publish

    base, out = tiny_llava(), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("an older checkpoint's")
    draft = draft_of(base, tmp_path, other_projector(base))
    num_files = len(list(draft.iterdir()))
    replace, moved = Path.replace, []

    def stop_before_the_last(self: Path, target: Path) -> Path:
        assert not (out / "config.json").exists()
        if len(moved) == num_files - 1:
            raise OSError("the machine stops")
        moved.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_before_the_last)
    with pytest.raises(OSError, match="the machine stops"):
        publish(draft, out)
    monkeypatch.undo()
    assert os.listdir(draft) == ["config.json"]
    assert "config.json" not in os.listdir(out)
    publish(draft_of(base, tmp_path, other_projector(base)), out)
    assert len(os.listdir(out)) == num_files


def test_files_of_an_earlier_checkpoint_go(tiny_llava: TinyLlava, tmp_path: Path) -> None:
    """An index of shards that stayed would be read in place of the new single file."""
    from deployments.training.checkpoint import publish, read_projector

    out = tmp_path / "out"
    out.mkdir()
    sharded, single = tiny_llava(), tiny_llava(language="qwen2")
    publish(draft_of(sharded, tmp_path, other_projector(sharded)), out)
    (out / "notes.txt").write_text("somebody's own")
    record = json.loads((out / "training.json").read_text())
    (tmp_path / "outside.txt").write_text("not ours")
    (out / "training.json").write_text(json.dumps({**record, "files": [*record["files"], "../outside.txt"]}))
    publish(draft_of(single, tmp_path, other_projector(single, seed=1)), out)
    assert set(os.listdir(out)) == {*os.listdir(single), "training.json", "notes.txt"}
    assert (tmp_path / "outside.txt").exists()
    expected = other_projector(single, seed=1)
    assert all(tensor.equal(expected[name]) for name, tensor in read_projector(out).items())


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"standing": {}}'])
def test_a_record_that_is_none_of_ours(tmp_path: Path, content: str) -> None:
    from deployments.training.checkpoint import read_record

    assert read_record(tmp_path) is None
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ConfigError, match="name another --out"):
        read_record(tmp_path)
