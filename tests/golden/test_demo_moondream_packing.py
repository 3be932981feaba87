"""Checks that the demo Moondream trains on the very prompts that are served, and on boxes that hold what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deployments.models.moondream_tokens import LENGTHS
from deployments.types import CaptionTask, DetectTask, ImagePart, ImageRef, Message, PointTask, QueryTask, TextPart

if TYPE_CHECKING:
    from conversations import Exchange
    from moondream_packing import Packer, Row

    from deployments.models.family import Prompt, PromptFormat
    from deployments.types import CaptionLength, Task

pytestmark = pytest.mark.torch

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoints" / "moondream"
PICTURE = ImagePart(ImageRef("a" * 64, 64, 64, 100, "image/png"))
NUM_SCENES = 40  # and one picture of no scene after them


@pytest.fixture(scope="module")
def serving() -> PromptFormat:
    from deployments.models.registry import open_family

    return open_family("moondream").open_prompt_format(CHECKPOINT)


@pytest.fixture
def packer() -> Packer:
    import torch
    from moondream_packing import Packer
    from moondream_tasks import Asker
    from scenes import sample_scene
    from tokenizers import Tokenizer

    rng = np.random.default_rng(5)
    asker = Asker([*(sample_scene(rng) for _ in range(NUM_SCENES)), None], rng)
    boxes = torch.from_numpy(rng.uniform(0.2, 0.5, (NUM_SCENES + 1, 2, 4)).astype(np.float32))
    return Packer(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), asker, boxes)


def served(serving: PromptFormat, task: Task, *, has_picture: bool = True) -> Prompt:
    return serving.build([Message("user", (PICTURE,) if has_picture else ())], task)


def asked(row: Row) -> list[int]:
    """The block's tokens before the first that is learned."""
    first = next(i for i, answer in enumerate(row.answers) if answer >= 0)
    return row.ids[:first]


def messages_of(turns: list[Exchange], *, has_picture: bool) -> list[Message]:
    """The picture comes with the last question, as late as it may."""
    texts = [text for turn in turns for text in (turn.user, turn.answer)][:-1]
    messages = [Message(("user", "assistant")[i % 2], (TextPart(text),)) for i, text in enumerate(texts)]
    if has_picture:
        messages[-1] = Message("user", (PICTURE, *messages[-1].content))
    return messages


@pytest.mark.parametrize("picture", [None, 3])
def test_conversations(packer: Packer, serving: PromptFormat, picture: int | None) -> None:
    from moondream_packing import prefix

    for _ in range(30):
        turns = packer.asker.turns(picture)
        prompt = serving.build(messages_of(turns, has_picture=picture is not None))
        row = prefix(picture)
        assert row.blocks.count(0) == (prompt.num_mutual or 1)
        row.add(packer.turns(turns), 1, len(row.ids))
        last_answer = [*packer.tokenizer.encode(turns[-1].answer).ids, 0]
        assert [*prompt.token_ids, *last_answer] == row.ids
        assert prompt.positions[0].tolist() == row.positions[: len(prompt.token_ids)]


@pytest.mark.parametrize("length", LENGTHS)
def test_captions(packer: Packer, serving: PromptFormat, length: CaptionLength) -> None:
    packer.weights |= {f"caption {other}": float(other == length) for other in LENGTHS}
    row = packer.caption(3)
    prompt = served(serving, CaptionTask(length))
    assert asked(row) == list(prompt.token_ids[prompt.num_mutual :])


@pytest.mark.parametrize("task", [DetectTask, PointTask])
def test_things_to_find(packer: Packer, serving: PromptFormat, task: type[DetectTask | PointTask]) -> None:
    from moondream_tasks import sought

    for picture in range(NUM_SCENES + 1):
        wanted = sought(packer.asker.scenes[picture], packer.asker.rng)
        row = packer.find("detect" if task is DetectTask else "point", picture, wanted)
        prompt = served(serving, task(wanted.phrase))
        assert asked(row) == list(prompt.token_ids[prompt.num_mutual :])
        assert len(row.coords) == 2 * len(wanted.found)
        assert len(row.sizes) == (len(wanted.found) if task is DetectTask else 0)
        assert all(value in packer.boxes[picture, list(wanted.found)] for value in row.coords.values())


@pytest.mark.parametrize("picture", [None, 3, NUM_SCENES])
def test_thoughts(packer: Packer, serving: PromptFormat, picture: int | None) -> None:
    for _ in range(30):
        exchange = packer.asker.single(picture)
        row = packer.think(exchange, picture)
        prompt = served(serving, QueryTask(exchange.user, reasoning=True), has_picture=picture is not None)
        assert asked(row) == list(prompt.token_ids[prompt.num_mutual or 1 :])


@pytest.mark.parametrize("place", [(0.25, 0.5), (0.25, 0.5, 0.5, 0.25)])
def test_questions_about_places(packer: Packer, serving: PromptFormat, place: tuple[float, ...]) -> None:
    row = packer.here(3, 0, place)
    text = serving.decode([i for i in asked(row) if i not in packer.templates["query"]["prefix"]])
    x, y, *size = place
    box = (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2) if size else (x, y)
    prompt = served(serving, QueryTask(text, spatial_refs=(box,)))
    assert asked(row) == list(prompt.token_ids[prompt.num_mutual :])
    given = {**{at: (value,) for at, value in row.coords.items()}, **row.sizes}
    assert given == {at - prompt.num_mutual: values for at, values in prompt.places}


def test_boxes_hold_what_is_drawn() -> None:
    from moondream_pictures import draw_boxed
    from scenes import Scene, Thing

    rng = np.random.default_rng(4)
    scene = Scene((Thing("circle", "red", "at the top left"),), "white")
    for _ in range(20):
        drawn = draw_boxed(scene, rng)
        pixels = np.asarray(drawn.image).astype(int)
        y, x = np.nonzero(pixels[..., 0] - pixels[..., 1] > 100)  # red on white, whatever noise there is
        height, width = pixels.shape[:2]
        corners = np.array([x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height])
        measured = np.concatenate([(corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]])
        assert np.abs(drawn.boxes[0] - measured).max() < 0.03


def test_patches_know_the_nearest_thing() -> None:
    from moondream_model import GRID
    from moondream_pictures import draw_boxed, truth_tensors
    from scenes import Scene, Thing

    scene = Scene((Thing("star", "red", "at the top left"), Thing("circle", "blue", "at the bottom right")), "white")
    drawn = draw_boxed(scene, np.random.default_rng(4))
    owners = truth_tensors([drawn])["owners"][0].reshape(GRID, GRID)
    assert owners[2, 2] == 0
    assert owners[5, 5] == 1
    assert owners[0, -1] == owners[-1, 0] == -1


def test_packed_blocks_see_the_picture_and_themselves(packer: Packer) -> None:
    from moondream_batch import to_batch
    from moondream_model import PREFIX

    [row] = packer.rows(1, 1.0)
    mask = to_batch([row]).mask[0, 0]
    assert mask[:PREFIX, :PREFIX].all()
    assert not mask[:PREFIX, PREFIX:].any()
    for token in range(PREFIX, len(row.ids), 7):
        seen = {index for index in range(token + 1) if row.blocks[index] in (0, row.blocks[token])}
        assert set(mask[token].nonzero().flatten().tolist()) == seen
