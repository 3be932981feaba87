"""Invariant 3 on SmolVLM checkpoints: the engine's answers equal transformers' full model token for token, alone and
in any mix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.watched import Answer, Watched, check_each_alone, check_in_a_crowd, open_watched

from deployments.types import (
    EncodeRequest,
    GenerateRequest,
    ImageFeatures,
    ImagePart,
    ImageRef,
    Json,
    Message,
    SamplingParams,
    TextPart,
)

if TYPE_CHECKING:
    from smolvlm_original import Original

pytestmark = pytest.mark.torch
VARIANTS = ("instruct", "256m", "smolvlm2")
MAX_NEW_TOKENS = 20
SIZES = ((64, 64), (1, 1), (300, 40), (200, 170), (33, 310), (512, 512), (90, 61))

# What each of the 12 asks, by turn: texts, and pictures by their index into SIZES.
QUESTIONS: tuple[tuple[tuple[str | int, ...], ...], ...] = (
    (("Hello, my name is Ada.",),),
    (("Hello, my name is Ada.",), ("Hello Ada.",), ("What is my name?",)),
    ((0, "What do you see in this image?"),),
    ((1, "What colour is it?"),),
    ((2, "How many shapes are there?"),),
    ((3, "Where is the star?"), ("At the top.",), ("Are you sure?",)),
    (("Let us talk about a picture.",), ("Gladly.",), ("Here it is:", 4, "Is there a ring?")),
    ((5, "Describe it."),),
    ((6,),),
    ((0, "And what is different here?", 3),),
    (("Tell me about 2024, or 日本, or 🙂.",),),
    ((2, "One."), ("Two.",), ("Three.",), ("Four.",), ("Five?",)),
)


def make_picture(index: int) -> Any:
    """Blotches of colour, so that no two tiles are alike."""
    from PIL import Image

    width, height = SIZES[index]
    noise = np.random.default_rng(index).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def to_request(number: int) -> GenerateRequest:
    messages = []
    for turn, parts in enumerate(QUESTIONS[number]):
        content = tuple(
            TextPart(part) if isinstance(part, str) else ImagePart(ImageRef(str(part), *SIZES[part], 1, "image/png"))
            for part in parts
        )
        messages.append(Message("assistant" if turn % 2 else "user", content))
    return GenerateRequest(f"r{number}", "tenant", tuple(messages), SamplingParams(max_new_tokens=MAX_NEW_TOKENS), 60)


class TowerEncoder:
    """A VisionEncoder that runs the family's own preprocessor and tower, one picture after the other."""

    def __init__(self, folder: Path) -> None:
        from deployments.models.registry import open_family

        family = open_family("smolvlm")
        self._preprocess = family.open_preprocessor(folder)
        self._tower = family.open_tower(folder, "cpu", "float32")
        self._known: dict[str, np.ndarray] = {}

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        image_id = request.image.id
        if image_id not in self._known:
            [rows] = self._tower.encode([self._preprocess(make_picture(int(image_id)))])
            self._known[image_id] = rows.numpy()
        return ImageFeatures(self._known[image_id], "float32", "tower", 0.0)

    async def statistics(self) -> Json:
        return {}


def answer_of(original: Original, number: int) -> Answer:
    turns: list[dict[str, object]] = [
        {
            "role": "assistant" if turn % 2 else "user",
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts
            ],
        }
        for turn, parts in enumerate(QUESTIONS[number])
    ]
    pictures = [make_picture(part) for parts in QUESTIONS[number] for part in parts if isinstance(part, int)]
    ids = original.answer(turns, pictures, MAX_NEW_TOKENS)
    # The engine leaves out white space before the answer, see AnswerText.
    return tuple(ids), original.processor.tokenizer.decode(ids, skip_special_tokens=True).lstrip()


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Any) -> Path:
    made: Path = tiny_checkpoint(request.param)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Answer]:
    from smolvlm_original import Original

    original = Original(folder)
    return [answer_of(original, number) for number in range(len(QUESTIONS))]


@pytest.fixture(params=["batch", "packed", "simple"])
def watched(request: pytest.FixtureRequest, folder: Path) -> Iterator[Watched]:
    settings = {"num_slots": 5, "prefill_chunk_tokens": 96, "max_context_tokens": 1024}
    with open_watched("smolvlm", folder, TowerEncoder(folder), request.param, **settings) as opened:
        yield opened


async def test_each_alone(watched: Watched, expected: list[Answer]) -> None:
    await check_each_alone(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)


async def test_in_a_batch_that_others_join_and_leave(watched: Watched, expected: list[Answer]) -> None:
    await check_in_a_crowd(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)
