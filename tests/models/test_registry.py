"""Families are found by name, and a checkpoint must be one that its family reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.errors import CheckpointError, ConfigError
from deployments.families import FAMILIES
from deployments.models.registry import check_model_type, open_family


def test_an_unknown_family_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown family 'smolvml'; there is smolvlm"):
        open_family("smolvml")


@pytest.mark.torch
@pytest.mark.parametrize("name", [name for name, entry in FAMILIES.items() if entry.module])
def test_every_family_opens_under_its_name(name: str) -> None:
    assert open_family(name).name == name


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_model_types_of_smolvlm(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert check_model_type("smolvlm", tmp_path) == model_type


@pytest.mark.parametrize("config", [{"model_type": "llava"}, {}, {"model_type": ["smolvlm"]}])
def test_other_model_types_are_refused(tmp_path: Path, config: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"smolvlm reads idefics3, smolvlm"):
        check_model_type("smolvlm", tmp_path)


def test_knowing_the_families_does_not_load_them() -> None:
    code = "import sys, deployments.models.registry; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
