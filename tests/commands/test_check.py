"""`retina check` beside the settings: checkpoints, sizes and how the config can be served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands.stage import ROOT, config_file
from typer.testing import CliRunner

from deployments.cli import app
from deployments.errors import CheckpointError, ConfigError


def check(config: Path) -> str:
    run = CliRunner().invoke(app, ["check", str(config)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def test_the_demo_checkpoints() -> None:
    said = check(ROOT / "configs" / "local.yaml")
    assert f"smolvlm in {ROOT}/demo/checkpoints/smolvlm, default" in said
    assert "generator-llava_qwen2          1 x 0.24 CPU" in said
    assert "16 slots of 2048 tokens, and 256 MB of remembered beginnings" in said
    assert "pictures, stored             2 GB, on disk" in said


def test_hub_checkpoints_are_named_and_not_fetched() -> None:
    said = check(ROOT / "configs" / "prod.yaml")
    assert "smolvlm from the hub: HuggingFaceTB/SmolVLM-Instruct at 81cd9a775a4d644f2faf4e7becff4559b46b14c7" in said
    assert "1 x 1 CPU, 0.2 GPU" in said
    assert "sum" in said


def test_stores_in_memory_and_bounds_of_memory(tmp_path: Path) -> None:
    generator = {"kv_cache_bytes": 1_500_000_000}
    said = check(config_file(tmp_path, images={"store": "memory"}, generator=generator))
    assert "in memory, lost at the end" in said
    assert "K and V 1.5 GB in all" in said
    assert "under Ray                    no: images.store: memory" in said


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"checkpoint": "no-such-folder"}, "neither a folder"),
        ({"checkpoint": "owner/name"}, "needs a pinned revision"),
        ({"checkpoint": "{folder}", "revision": "main"}, "has no revision"),
        ({"checkpoint": "{folder}"}, "'qwen2_vl', which family 'smolvlm' does not read"),
        ({"checkpoint": "{empty}"}, "config.json"),
    ],
)
def test_checkpoints_that_cannot_be(tmp_path: Path, model: dict[str, str], said: str) -> None:
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    places = {key: value.format(folder=folder, empty=empty) for key, value in model.items()}
    config = config_file(tmp_path, models=[{"name": "m", "family": "smolvlm", **places}])
    with pytest.raises(CheckpointError, match=said):
        check(config)


def test_nonsense_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"args\.ingress\.colour"):
        check(config_file(tmp_path, ingress={"colour": "red"}))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"config\.yaml is not YAML"):
        check(path)
