"""Holds the demo Moondream checkpoint to its answers, boxes and points, its size and its recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deployments.models.moondream_tokens import LENGTHS
from deployments.types import Box, CaptionTask, DetectTask, Point, PointTask, QueryTask

if TYPE_CHECKING:
    from moondream_answers import Examinee

    from deployments.types import ImagePart

pytestmark = pytest.mark.torch

DEMO = Path(__file__).parents[2] / "demo"
CHECKPOINT = DEMO / "checkpoints" / "moondream"
GOLDEN = json.loads(Path(__file__).with_name("moondream.json").read_text(encoding="utf-8"))
PICTURES = GOLDEN["pictures"]
BINS_APART = 0.02  # of the picture's side: another processor may round to a neighbouring bin
SINGLE = [name for name, about in PICTURES.items() if about["outline"]]


@pytest.fixture(scope="module")
def examinee() -> Examinee:
    from moondream_answers import Examinee

    return Examinee(CHECKPOINT)


def shown(examinee: Examinee, name: str) -> ImagePart:
    with Image.open(DEMO / "images" / name) as image:
        return examinee.show(name, image)


def questions(conversation: dict[str, Any]) -> Iterator[tuple[list[tuple[str, str]], str, str]]:
    """Yield the turns before each question, the question and the answer expected."""
    turns: list[tuple[str, str]] = []
    for question, answer in conversation["turns"]:
        yield list(turns), question, answer
        turns.append((question, answer))


@pytest.mark.parametrize("conversation", GOLDEN["conversations"], ids=lambda conversation: str(conversation["image"]))
def test_answers_stay(examinee: Examinee, conversation: dict[str, Any]) -> None:
    for turns, question, answer in questions(conversation):
        has_come = conversation["image"] is not None and len(turns) >= conversation["image_turn"]
        picture = shown(examinee, conversation["image"]) if has_come else None
        assert examinee.chat(turns, question, picture) == answer, question


@pytest.mark.parametrize("name", PICTURES)
def test_captions_stay(examinee: Examinee, name: str) -> None:
    picture = shown(examinee, name)
    captions = [examinee.do(CaptionTask(length), picture).answer for length in LENGTHS]
    assert captions == PICTURES[name]["captions"]


@pytest.mark.parametrize("name", PICTURES)
def test_thoughts_stay(examinee: Examinee, name: str) -> None:
    picture = shown(examinee, name)
    for question, thought, answer in PICTURES[name]["thoughts"]:
        reply = examinee.do(QueryTask(question, reasoning=True), picture)
        assert (reply.thought, reply.answer) == (thought, answer), question


@pytest.mark.parametrize("name", PICTURES)
def test_answers_about_places_stay(examinee: Examinee, name: str) -> None:
    picture = shown(examinee, name)
    for place, question, answer in PICTURES[name]["places"]:
        assert examinee.do(QueryTask(question, spatial_refs=(tuple(place),)), picture).answer == answer, place


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_and_points_stay(examinee: Examinee, name: str) -> None:
    picture = shown(examinee, name)
    for phrase, boxes in PICTURES[name]["boxes"].items():
        found = [_numbers(one) for one in examinee.do(DetectTask(phrase), picture).found]
        assert found == [pytest.approx(box, abs=BINS_APART) for box in boxes], phrase
        points = [_numbers(one) for one in examinee.do(PointTask(phrase), picture).found]
        middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes]
        assert points == [pytest.approx(middle, abs=2 * BINS_APART) for middle in middles], phrase


@pytest.mark.parametrize("name", SINGLE)
def test_boxes_lie_on_what_the_picture_shows(examinee: Examinee, name: str) -> None:
    from moondream_exam import overlap

    picture = shown(examinee, name)
    outline = _outline(DEMO / "images" / name)
    [box] = examinee.do(DetectTask("shape"), picture).found
    assert overlap(_numbers(box), outline) >= 0.5
    [point] = examinee.do(PointTask("shape"), picture).found
    assert isinstance(point, Point)
    assert outline[0] < point.x < outline[2]
    assert outline[1] < point.y < outline[3]


def _numbers(found: Box | Point) -> tuple[float, ...]:
    return (found.x, found.y) if isinstance(found, Point) else (found.x_min, found.y_min, found.x_max, found.y_max)


def _outline(path: Path) -> tuple[float, ...]:
    """What differs from the corner's colour, as shares of the picture's sides."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    y, x = np.nonzero(np.abs(pixels - pixels[0, 0]).max(-1) > 60)
    height, width = pixels.shape[:2]
    return x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height


def test_recipe_belongs_to_weights() -> None:
    recipe = json.loads((CHECKPOINT / "recipe.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    assert recipe["weights_sha256"] == digest


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) <= 6_800_000


def test_tower_is_the_demo_smolvlm_s() -> None:
    import torch
    from moondream_model import tower_weights
    from safetensors.torch import load_file

    stored = load_file(CHECKPOINT / "model.safetensors")
    for name, weight in tower_weights(DEMO / "checkpoints" / "smolvlm").items():
        assert torch.equal(stored[f"model.vision.{name}"].float(), weight), name
