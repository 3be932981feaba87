"""Invariant 3 on SmolVLM checkpoints: the engine's answers equal transformers' full model token for token, alone and
in any mix."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generator.letters import read

from deployments.config import GeneratorConfig
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


Answer = tuple[tuple[int, ...], str, int]  # token ids with the stop token; text; number of tokens without it


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


class Original:
    """The checkpoint as transformers runs it: its processor, its whole model, its `generate`."""

    def __init__(self, folder: Path) -> None:
        import tiny_checkpoints
        import torch
        from transformers import (
            AutoImageProcessor,
            AutoModelForImageTextToText,
            Idefics3Processor,
            TokenizersBackend,
        )

        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        config = self._model.config
        patches = config.vision_config.image_size // config.vision_config.patch_size
        # Idefics3Processor for all three: SmolVLMProcessor cannot be made without torchvision.
        self._processor = Idefics3Processor(
            AutoImageProcessor.from_pretrained(folder, backend="pil"),
            TokenizersBackend.from_pretrained(folder),
            image_seq_len=(patches // config.scale_factor) ** 2,
            chat_template=tiny_checkpoints.CHAT_TEMPLATE,
        )

    def answer(self, number: int) -> Answer:
        import torch

        turns = [
            {
                "role": "assistant" if turn % 2 else "user",
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts
                ],
            }
            for turn, parts in enumerate(QUESTIONS[number])
        ]
        pictures = [make_picture(part) for parts in QUESTIONS[number] for part in parts if isinstance(part, int)]
        text = self._processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = self._processor(text=text, images=pictures or None, return_tensors="pt")
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        ids = output[0, inputs["input_ids"].shape[1] :].tolist()
        stop = self._model.generation_config.eos_token_id
        shown = ids[:-1] if ids[-1] in (stop if isinstance(stop, list) else [stop]) else ids
        # The engine leaves out white space before the answer, see AnswerText.
        return tuple(ids), self._processor.tokenizer.decode(shown, skip_special_tokens=True).lstrip(), len(shown)


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Any) -> Path:
    made: Path = tiny_checkpoint(request.param)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Answer]:
    original = Original(folder)
    return [original.answer(number) for number in range(len(QUESTIONS))]


@dataclass
class Watched:
    """An engine, and the token ids that its runner chose for each request."""

    engine: Any
    ids: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        runner = self.engine._worker.runner
        step = runner.step

        def recording_step(sequences: Any) -> Any:
            made = step(sequences)
            for sequence, token_id in made.tokens:
                self.ids[sequence.request_id].append(token_id)
            return made

        runner.step = recording_step

    async def ask(self, number: int) -> Answer:
        request_id = f"asked-{next(self.numbers)}"  # the same is asked more than once
        answer = await read(self.engine.stream(replace(to_request(number), request_id=request_id)))
        assert answer.last.usage is not None
        return tuple(self.ids[request_id]), answer.text, answer.last.usage.completion_tokens


@pytest.fixture(params=["batch", "simple"])
def watched(request: pytest.FixtureRequest, folder: Path) -> Iterator[Watched]:
    from deployments.generator.engine import Engine
    from deployments.models.registry import open_family

    family = open_family("smolvlm")
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", "float32")
    config = GeneratorConfig(mode=request.param, num_slots=5, prefill_chunk_tokens=96, max_context_tokens=1024)
    engine = Engine(language, prompts, TowerEncoder(folder), config)
    yield Watched(engine)
    idle, problems = engine.wait_idle(20), engine.check()
    engine.close()
    assert idle
    assert problems == ()


async def test_each_alone(watched: Watched, expected: list[Answer]) -> None:
    assert [await watched.ask(number) for number in range(len(QUESTIONS))] == expected
    assert len({ids for ids, _, _ in expected}) == len(expected), "the questions should be told apart by their answers"


async def test_in_a_batch_that_others_join_and_leave(watched: Watched, expected: list[Answer]) -> None:
    chance = random.Random(3)
    order = list(range(len(QUESTIONS))) * 2
    chance.shuffle(order)
    tasks = []
    for number in order:
        tasks.append(asyncio.create_task(watched.ask(number)))
        leaver = watched.engine.stream(to_request(chance.randrange(len(QUESTIONS))))
        await anext(leaver)
        await leaver.aclose()
    assert await asyncio.gather(*tasks) == [expected[number] for number in order]
