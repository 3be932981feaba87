"""Invariant 3 on Qwen2-VL checkpoints, whose positions have three rows and whose answers shun repetition: the engine's
answers equal transformers' full model token for token, alone and in any mix."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.watched import Answer, Watched, check_each_alone, check_in_a_crowd, open_watched

from deployments.errors import InvalidImage
from deployments.types import (
    CaptionTask,
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
    from qwen2_vl_original import Original

pytestmark = pytest.mark.torch
VARIANTS = ("2b", "7b")
MAX_NEW_TOKENS = 20
SIZES = ((64, 64), (1, 1), (300, 40), (200, 170), (33, 310), (512, 412), (30, 2000))

# What each of the 12 asks, by turn: texts, and pictures by their index into SIZES.
QUESTIONS: tuple[tuple[tuple[str | int, ...], ...], ...] = (
    (("Hello, my name is Ada.",),),
    (("Hello, my name is Ada.",), ("Hello Ada.",), ("What is my name?",)),
    ((0, "What do you see in this image?"),),
    ((1, "この画像には何がありますか？"),),
    ((2, "How many shapes are there?"),),
    ((3, "Where is the star?"), ("At the top.",), ("Are you sure?",)),
    (("Let us talk about a picture.",), ("Gladly.",), ("Here it is:", 4, "Is there a ring?")),
    ((5, "Describe it."),),
    ((6,),),
    ((0, "And what is different here?", 3),),
    (("Tell me about 2024, or 日本, or 🙂.",),),
    ((2, "One.", 2), ("Two.",), ("Three.", 1), ("Four.",), ("Five?",)),
)


def make_picture(index: int) -> Any:
    """Blotches of colour, so that no two patches are alike."""
    from PIL import Image

    noise = np.random.default_rng(index).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZES[index], Image.Resampling.BICUBIC)


def to_part(part: str | int) -> TextPart | ImagePart:
    if isinstance(part, str):
        return TextPart(part)
    return ImagePart(ImageRef(str(part), *SIZES[part], 1, "image/png"))


def to_request(number: int) -> GenerateRequest:
    messages = tuple(
        Message("assistant" if turn % 2 else "user", tuple(map(to_part, parts)))
        for turn, parts in enumerate(QUESTIONS[number])
    )
    return GenerateRequest(f"r{number}", "tenant", messages, SamplingParams(max_new_tokens=MAX_NEW_TOKENS), 60)


def answer_of(original: Original, question: tuple[tuple[str | int, ...], ...]) -> Answer:
    turns: list[dict[str, object]] = [
        {
            "role": "assistant" if turn % 2 else "user",
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts
            ],
        }
        for turn, parts in enumerate(question)
    ]
    pictures = [make_picture(part) for parts in question for part in parts if isinstance(part, int)]
    ids = original.answer(turns, pictures, MAX_NEW_TOKENS)
    shown = ids[:-1] if ids[-1] in original.model.generation_config.eos_token_id else ids
    text: str = original.processor.tokenizer.decode(shown, skip_special_tokens=True)
    return tuple(ids), text.lstrip()  # the engine leaves out white space before the answer, see AnswerText


class TowerEncoder:
    """A VisionEncoder that runs the family's own preprocessor and tower, one picture after the other."""

    def __init__(self, folder: Path) -> None:
        from deployments.models.registry import open_family

        family = open_family("qwen2_vl")
        self._preprocess = family.open_preprocessor(folder)
        self._tower = family.open_tower(folder, "cpu", "float32")

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        [rows] = self._tower.encode([self._preprocess(make_picture(int(request.image.id)))])
        return ImageFeatures(rows.numpy(), "float32", "tower", 0.0)

    async def statistics(self) -> Json:
        return {}


@pytest.fixture(scope="module", params=VARIANTS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    from qwen2_vl_original import Original
    from tiny_qwen2_vl import build_qwen2_vl

    return Original(build_qwen2_vl(tmp_path_factory.mktemp("qwen2-vl"), variant=request.param, seed=3))


@pytest.fixture(scope="module")
def expected(original: Original) -> list[Answer]:
    return [answer_of(original, question) for question in QUESTIONS]


@pytest.fixture(params=["batch", "packed", "simple"])
def watched(request: pytest.FixtureRequest, original: Original) -> Iterator[Watched]:
    settings = {"num_slots": 5, "prefill_chunk_tokens": 96, "max_context_tokens": 1024}
    with open_watched("qwen2_vl", original.folder, TowerEncoder(original.folder), request.param, **settings) as opened:
        yield opened


async def test_each_alone(watched: Watched, expected: list[Answer]) -> None:
    await check_each_alone(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)


async def test_in_a_batch_that_others_join_and_leave(watched: Watched, expected: list[Answer]) -> None:
    await check_in_a_crowd(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)


async def test_a_caption_in_japanese(watched: Watched, original: Original) -> None:
    message = Message("user", (to_part(3),))
    request = replace(to_request(0), messages=(message,), task=CaptionTask("long", "ja"))
    assert await watched.ask(request) == answer_of(original, ((3, "この画像を詳しく説明してください。"),))


async def test_a_penalty_of_the_requests_own(watched: Watched, original: Original) -> None:
    """In place of the checkpoint's; and rows with different penalties decode together."""
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, repetition_penalty=1.8)
    numbers = (0, 2, 3, 5)
    ordinary = [watched.ask(to_request(number)) for number in numbers]
    strict = [watched.ask(replace(to_request(number), sampling=sampling)) for number in numbers]
    answers = await asyncio.gather(*ordinary, *strict)
    config = original.model.generation_config
    of_checkpoint = config.repetition_penalty
    assert answers[:4] == [answer_of(original, QUESTIONS[number]) for number in numbers]
    config.repetition_penalty = 1.8
    try:
        assert answers[4:] == [answer_of(original, QUESTIONS[number]) for number in numbers]
    finally:
        config.repetition_penalty = of_checkpoint
    assert answers[:4] != answers[4:]


async def test_a_picture_too_thin_is_the_requests_fault(watched: Watched, expected: list[Answer]) -> None:
    thin = Message("user", (ImagePart(ImageRef("0", 10_000, 1, 1, "image/png")), TextPart("What?")))
    with pytest.raises(InvalidImage, match="10000 x 1 pixels is too thin"):
        await watched.ask(replace(to_request(0), messages=(thin,)))
    assert await watched.ask(to_request(0)) == expected[0]
