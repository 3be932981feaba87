"""Features, prompts and answers equal what moondream2's published code gives, recorded in moondream_expected.json.

Recorded with float32 weights and greedy choice, on checkpoints of tiny_moondream.REFERENCE with the seed, the number of
K/V heads and the head's raised biases that each entry names. Raised biases make thoughts point, and answers end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moondream_loop import Answer, answer
from PIL import Image
from tiny_moondream import REFERENCE, build_moondream

from deployments.models.family import Prompt
from deployments.models.registry import open_family
from deployments.types import (
    CaptionTask,
    DetectTask,
    ImagePart,
    ImageRef,
    Message,
    PointTask,
    QueryTask,
    Task,
)

pytestmark = pytest.mark.torch

EXPECTED = json.loads(Path(__file__).with_name("moondream_expected.json").read_text(encoding="utf-8"))
TASKS: Mapping[str, type] = {"caption": CaptionTask, "query": QueryTask, "detect": DetectTask, "point": PointTask}
COORD_ID = 5


@dataclass
class Checkpoint:
    folder: Path

    def __post_init__(self) -> None:
        self.family = open_family("moondream")
        self._features: dict[tuple[int, ...], torch.Tensor] = {}

    @cached_property
    def language(self) -> Any:
        return self.family.open_language(self.folder, "cpu", "float32")

    @cached_property
    def prompts(self) -> Any:
        return self.family.open_prompt_format(self.folder)

    @cached_property
    def preprocessor(self) -> Any:
        return self.family.open_preprocessor(self.folder)

    @cached_property
    def tower(self) -> Any:
        return self.family.open_tower(self.folder, "cpu", "float32")

    def features(self, picture: list[int] | None) -> torch.Tensor | None:
        if picture is None:
            return None
        key = tuple(picture)
        if key not in self._features:
            [self._features[key]] = self.tower.encode([self.preprocessor(draw(*picture))])
        return self._features[key]

    def build(self, picture: list[int] | None, task: Task) -> Prompt:
        parts = () if picture is None else (ImagePart(ImageRef("a" * 64, picture[1], picture[2], 1, "image/png")),)
        prompt: Prompt = self.prompts.build((Message("user", parts),), task)
        return prompt


def draw(seed: int, width: int, height: int) -> Image.Image:
    noise = np.random.RandomState(seed).rand(max(2, height // 20), max(2, width // 20), 3) * 255
    return Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], Checkpoint]:
    known: dict[str, Checkpoint] = {}

    def build(about: Mapping[str, Any]) -> Checkpoint:
        key = json.dumps(about)
        if key not in known:
            known[key] = Checkpoint(_build(tmp_path_factory.mktemp("moondream"), about))
        return known[key]

    return build


def _build(folder: Path, about: Mapping[str, Any]) -> Path:
    def raise_biases(weights: dict[str, torch.Tensor]) -> None:
        for token_id, amount in about.get("raised", {}).items():
            weights["text.lm_head.bias"][int(token_id)] += amount

    config = deepcopy(REFERENCE)
    config["text"]["n_kv_heads"] = about.get("n_kv_heads", config["text"]["n_kv_heads"])
    return build_moondream(folder, config=config, seed=about["seed"], change=raise_biases)


def pictures() -> list[Any]:
    return [
        pytest.param(case["checkpoint"], row, id=f"{number}-{row['picture']}")
        for number, case in enumerate(EXPECTED)
        for row in case["pictures"]
        if row["picture"] is not None
    ]


def answers() -> list[Any]:
    return [
        pytest.param(case["checkpoint"], row["picture"], wanted, id=f"{number}-{row['picture']}-{index}")
        for number, case in enumerate(EXPECTED)
        for row in case["pictures"]
        for index, wanted in enumerate(row["answers"])
    ]


def task_of(wanted: Mapping[str, Any]) -> Task:
    values = {name: value for name, value in wanted["task"].items() if name != "kind"}
    if "spatial_refs" in values:
        values["spatial_refs"] = tuple(tuple(reference) for reference in values["spatial_refs"])
    task: Task = TASKS[wanted["task"]["kind"]](**values)
    return task


@pytest.mark.parametrize(("about", "row"), pictures())
def test_features(checkpoint: Any, about: Any, row: Any) -> None:
    opened = checkpoint(about)
    pixels = opened.preprocessor(draw(*row["picture"]))
    assert pixels.tensors["tiling"].tolist() == row["tiling"]
    assert len(pixels.tensors["crops"]) == 1 + row["tiling"][0] * row["tiling"][1]
    features = opened.features(row["picture"])
    # Exact with one thread on the machine that recorded them; others may add in another order.
    assert features[0, :4].tolist() == pytest.approx(row["features"]["head"], abs=1e-5)
    assert features.double().sum().item() == pytest.approx(row["features"]["sum"], abs=1e-2)
    assert features.double().abs().sum().item() == pytest.approx(row["features"]["abs"], abs=1e-2)


@pytest.mark.parametrize(("about", "picture", "wanted"), answers())
def test_answers(checkpoint: Any, about: Any, picture: Any, wanted: Any) -> None:
    opened = checkpoint(about)
    prompt = opened.build(picture, task_of(wanted))
    begin = prompt.num_mutual  # BOS belongs to the recorded prompt where there is no picture
    assert list(prompt.token_ids[begin:]) == wanted["prompt"]
    got = answer(opened.language, prompt, opened.features(picture), wanted["max_new_tokens"])
    if "found" in wanted:
        assert [list(astuple(each)) for each in got.found] == wanted["found"]
        return
    assert opened.prompts.decode(got.token_ids) == wanted["text"]
    thoughts = [token_id for phrase in got.phrases for token_id in phrase if token_id != COORD_ID]
    assert thoughts + got.token_ids == wanted["fed"]
    if "reasoning" in wanted:
        assert reasoning_of(opened, got) == wanted["reasoning"]


def reasoning_of(opened: Checkpoint, got: Answer) -> dict[str, Any]:
    text, groundings = "", []
    for phrase, points in zip(got.phrases, got.points, strict=True):
        start, text = len(text), text + opened.prompts.decode(phrase)
        if points:
            places = [list(astuple(point)) for point in points]
            groundings.append({"start_idx": start, "end_idx": len(text), "points": places})
    return {"text": text, "grounding": groundings}


def test_what_was_recorded_is_worth_comparing() -> None:
    recorded = [wanted for case in EXPECTED for row in case["pictures"] for wanted in row["answers"]]
    assert any(len(wanted.get("reasoning", {}).get("grounding", ())) > 1 for wanted in recorded)
    assert any(0 < len(wanted.get("fed", ())) < wanted["max_new_tokens"] for wanted in recorded)  # ended by itself
    assert {len(wanted["found"]) for wanted in recorded if "found" in wanted} == {0, 4, 6}
    assert len({tuple(wanted["fed"]) for wanted in recorded if wanted.get("fed")}) > 40
