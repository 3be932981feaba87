"""The picture benchmark on a tiny checkpoint: every part is measured, and features are copied where it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import vision
from deployments.models.fused_vision import can_fuse

pytestmark = pytest.mark.torch


@pytest.fixture
def result(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """result(*words) -> what --out keeps."""

    def run(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(vision, "cached_checkpoint", lambda tiles: tiny_checkpoint())
        out = tmp_path / "vision.json"
        assert vision.main(["--short", "--device", "cpu", "--out", str(out), *words]) == 0
        content: dict[str, Any] = json.loads(out.read_text())
        return content

    return run


def rows_of(result: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["part"] == part]


def test_every_part_is_measured(result: Callable[..., dict[str, Any]]) -> None:
    measured = result()
    assert measured["benchmark"] == "vision"
    assert {row["dtype"] for row in measured["rows"]} == {"bfloat16"}
    assert [row["stage"] for row in rows_of(measured, "stages")] == [
        "check",
        "decode",
        "preprocess",
        "tower",
        "to record",
        "from record",
    ]
    towers = [(row["code"], row["batch"]) for row in rows_of(measured, "tower")]
    assert towers == [(code, batch) for batch in (1, 4) for code in ("retina", "transformers")]
    assert [(row["users"], row["source"]) for row in rows_of(measured, "encoder")] == [
        (1, "tower"),
        (1, "memory"),
        (16, "tower"),
        (16, "memory"),
    ]
    assert all(row["pictures_per_s"] > 0 for part in ("tower", "encoder") for row in rows_of(measured, part))


@pytest.mark.parametrize(("dtype", "num_joined"), [("float32", 0), ("bfloat16", 1)])
def test_where_features_are_copied(result: Callable[..., dict[str, Any]], dtype: str, num_joined: int) -> None:
    """The tiny checkpoint cuts the picture into tiles: in bfloat16 they come one by one and are laid together."""
    if dtype == "bfloat16" and not can_fuse(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no products in bfloat16")
    steps = {row["features"]: row["copies"] for row in rows_of(result("--dtype", dtype), "route")}
    assert steps == {
        "of the tower": 0,
        "on the CPU": 0,
        "of all tiles": num_joined,
        "in cache and answer": 0,
        "in a message": 0,
        "of the generator": 1,
    }
