"""Invariant 3 on LLaVA checkpoints: the engine's answers equal transformers' full model token for token, alone and in
any mix, with features that a tower shared with another model has made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.watched import Answer, Watched, check_each_alone, check_in_a_crowd, open_watched

from deployments.errors import PartUnavailable
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
    from llava_original import Original

pytestmark = pytest.mark.torch
LANGUAGES = ("llama", "mistral", "qwen2")
MAX_NEW_TOKENS = 24
SIZES = ((56, 56), (1, 1), (30, 2000), (1500, 700), (33, 310), (90, 61))

# What each of the 11 asks, by turn: texts, and pictures by their index into SIZES.
QUESTIONS: tuple[tuple[tuple[str | int, ...], ...], ...] = (
    (("Hello, my name is Ada.",),),
    (("Hello, my name is Ada.",), ("Hello Ada.",), ("What is my name?",)),
    ((0, "What do you see in this image?"),),
    ((1, "What colour is it?"),),
    ((2, "How many shapes are there?"),),
    ((3, "Where is the star?"), ("At the top.",), ("Are you sure?",)),
    (("Let us talk about a picture.",), ("Gladly.",), ("Here it is:", 4, "Is there a ring?")),
    ((5,),),
    ((0, "And what is different here?", 3),),
    (("Tell me about 2024, or 日本, or 🙂.\n\n",),),
    ((2, "One."), ("Two.",), ("Three.",), ("Four.",), (5, "Five?")),
)


def make_picture(index: int) -> Any:
    """Blotches of colour, so that no two places are alike."""
    from PIL import Image

    noise = np.random.default_rng(index).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(SIZES[index], Image.Resampling.BICUBIC)


def to_part(part: str | int) -> TextPart | ImagePart:
    return TextPart(part) if isinstance(part, str) else ImagePart(ImageRef(str(part), *SIZES[part], 1, "image/png"))


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
    shown = ids[:-1] if ids[-1] == original.model.generation_config.eos_token_id else ids
    # The engine leaves out white space before the answer, see AnswerText.
    return tuple(ids), original.processor.tokenizer.decode(shown, skip_special_tokens=True).lstrip()


class TowerEncoder:
    """A VisionEncoder that runs the family's own preprocessor and tower, one picture after the other."""

    def __init__(self, folder: Path) -> None:
        from deployments.models.registry import open_family

        family = open_family("llava")
        self._preprocess = family.open_preprocessor(folder)
        self._tower = family.open_tower(folder, "cpu", "float32")

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        [rows] = self._tower.encode([self._preprocess(make_picture(int(request.image.id)))])
        return ImageFeatures(rows.numpy(), "float32", "tower", 0.0)

    async def statistics(self) -> Json:
        return {}


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model's checkpoint, with the tower that all here have."""
    from tiny_llava import build_llava

    return build_llava(tmp_path_factory.mktemp("llava-tower"), language="qwen2", seed=8, tower_seed=4)


@pytest.fixture(scope="module", params=LANGUAGES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Original:
    from llava_original import Original
    from tiny_llava import build_llava

    return Original(build_llava(tmp_path_factory.mktemp("llava"), language=request.param, seed=3, tower_seed=4))


@pytest.fixture(scope="module")
def expected(original: Original) -> list[Answer]:
    return [answer_of(original, question) for question in QUESTIONS]


@pytest.fixture(params=["batch", "packed", "simple"])
def watched(request: pytest.FixtureRequest, original: Original, tower_folder: Path) -> Iterator[Watched]:
    settings = {"num_slots": 5, "prefill_chunk_tokens": 24, "max_context_tokens": 512}
    with open_watched("llava", original.folder, TowerEncoder(tower_folder), request.param, **settings) as opened:
        yield opened


async def test_each_alone(watched: Watched, expected: list[Answer]) -> None:
    await check_each_alone(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)


async def test_in_a_batch_that_others_join_and_leave(watched: Watched, expected: list[Answer]) -> None:
    await check_in_a_crowd(watched, [to_request(number) for number in range(len(QUESTIONS))], expected)


async def test_a_caption(watched: Watched, original: Original) -> None:
    request = replace(to_request(0), messages=(Message("user", (to_part(3),)),), task=CaptionTask("short"))
    assert await watched.ask(request) == answer_of(original, ((3, "Describe this image briefly."),))


async def test_features_that_are_projected_already_are_refused(watched: Watched, expected: list[Answer]) -> None:
    """As wide as the language model instead of as wide as the tower: somebody else's features."""

    class Foreign(TowerEncoder):
        async def encode(self, request: EncodeRequest) -> ImageFeatures:
            return ImageFeatures(np.zeros((16, 64), np.float32), "float32", "memory", 0.0)

    own = watched.engine._builder._encoder
    watched.engine._builder._encoder = Foreign.__new__(Foreign)
    with pytest.raises(PartUnavailable, match="64 wide, the language model takes 48"):
        await watched.ask(to_request(2))
    watched.engine._builder._encoder = own
    assert await watched.ask(to_request(2)) == expected[2]
