"""Answers of every family's checkpoints, cut anywhere and gone on with: with pictures, earlier turns, and grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generator.cuts import check_cuts, check_cuts_at_once, hear
from generator.letters import ask, user

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.types import (
    EncodeRequest,
    GenerateRequest,
    Grammar,
    ImageFeatures,
    ImageRef,
    Json,
    Message,
    QueryTask,
    TextPart,
)

pytestmark = pytest.mark.torch
FAMILIES = ("smolvlm", "qwen2_vl", "moondream", "llava", "llava_qwen2")
MODES = ("batch", "packed", "simple")
CAT = ImageRef("1", 200, 150, 1, "image/png")


class TowerEncoder:
    """A VisionEncoder that runs the family's own preprocessor and tower."""

    def __init__(self, family: Any, folder: Path) -> None:
        self._preprocess, self._tower = family.open_preprocessor(folder), family.open_tower(folder, "cpu", "float32")
        self._known: dict[str, np.ndarray] = {}

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        if request.image.id not in self._known:
            [rows] = self._tower.encode([self._preprocess(make_picture(request.image))])
            self._known[request.image.id] = rows.numpy()
        return ImageFeatures(self._known[request.image.id], "float32", "tower", 0.0, self._tower.fingerprint)

    async def statistics(self) -> Json:
        return {}


def make_picture(image: ImageRef) -> Any:
    """Blotches of colour, so that no two patches are alike."""
    from PIL import Image

    noise = np.random.default_rng(int(image.id)).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((image.width, image.height), Image.Resampling.BICUBIC)


def questions(**sampling: Any) -> list[GenerateRequest]:
    """Without a picture, with one, and in a later turn about it."""
    turns: list[tuple[Message, ...]] = [
        (user("What is your name?"),),
        (user(CAT, "What do you see?"),),
        (user(CAT, "A cat?"), Message("assistant", (TextPart("No."),)), user("Then what?")),
    ]
    return [
        ask(*messages, request_id=f"r{number}", **{"max_new_tokens": 12, **sampling})
        for number, messages in enumerate(turns)
    ]


@dataclass(frozen=True)
class Subject:
    family: Any
    folder: Path
    encoder: TowerEncoder


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    from deployments.models.registry import open_family

    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    family = open_family("llava" if request.param == "llava_qwen2" else request.param)
    return Subject(family, folder, TowerEncoder(family, folder))


def build(name: str, folder: Path) -> Path:
    from tiny_checkpoints import build_smolvlm
    from tiny_llava import build_llava
    from tiny_moondream import SMALL, build_moondream
    from tiny_qwen2_vl import build_qwen2_vl

    match name:
        case "smolvlm":
            return build_smolvlm(folder, variant="256m", seed=0)
        case "qwen2_vl":
            return build_qwen2_vl(folder, variant="2b", seed=3)
        case "moondream":
            return build_moondream(folder, config=SMALL)
        case "llava":
            return build_llava(folder, language="llama", seed=0)
        case _:
            return build_llava(folder, language="qwen2", seed=0)


OpenEngine = Callable[..., Any]


@pytest.fixture
def opened(subject: Subject) -> Iterator[OpenEngine]:
    """opened(mode, **config keys): an engine with grammars, idle and in order at the end."""
    from deployments.generator.engine import Engine
    from deployments.generator.grammar import open_grammars

    engines: list[Engine] = []

    def open_engine(mode: str = "batch", **settings: int) -> Engine:
        prompts = subject.family.open_prompt_format(subject.folder)
        language = subject.family.open_language(subject.folder, "cpu", "float32")
        if mode == "packed":
            language.pack()
        sizes = {"num_slots": 4, "max_context_tokens": 512, "prefill_chunk_tokens": 48, "max_waiting_requests": 1000}
        kind = "simple" if mode == "simple" else "batch"
        config = GeneratorConfig.model_validate({"mode": kind, **sizes, **settings})
        open_mask = open_grammars(prompts, language.vocab_size, config)
        engines.append(Engine(language, prompts, subject.encoder, config, open_mask=open_mask))
        return engines[-1]

    yield open_engine
    for engine in engines:
        idle, problems = engine.wait_idle(20), engine.check()
        engine.close()
        assert idle
        assert problems == ()


@pytest.mark.parametrize("mode", MODES)
async def test_greedy(opened: OpenEngine, mode: str) -> None:
    engine = opened(mode, prefix_cache_bytes=0)
    wholes = [await check_cuts(engine, request) for request in questions()]
    assert len({whole.token_ids for whole in wholes}) == len(wholes)


@pytest.mark.parametrize("mode", MODES)
async def test_sampled_with_a_seed(opened: OpenEngine, mode: str) -> None:
    sampling = {"temperature": 1.1, "seed": 4, "top_p": 0.95, "frequency_penalty": 0.5, "num_logprobs": 2}
    wholes = await check_cuts_at_once(opened(mode, prefix_cache_bytes=0), questions(**sampling))
    assert all(whole.token_ids for whole in wholes)


async def test_in_a_batch_with_what_is_remembered(opened: OpenEngine) -> None:
    engine = opened()
    asked = [*questions(), *questions(temperature=1.0, seed=1), *questions(repetition_penalty=1.7)]
    await check_cuts_at_once(engine, asked)
    assert (await engine.statistics())["metrics"]["generator_reused_tokens"] > 0


@pytest.mark.parametrize("mode", ["batch", "simple"])
async def test_within_a_grammar(opened: OpenEngine, mode: str) -> None:
    """Whatever the cut, the same document: its mask knows what was answered, and how much of its budget is left."""
    engine = opened(mode)
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    for grammar in (Grammar("json_object"), Grammar("json_schema", schema)):
        request = questions(grammar=grammar, max_new_tokens=24, temperature=1.0, seed=2)[1]
        whole = await check_cuts(engine, request)
        assert whole.text.startswith("{")
        assert whole.text.endswith("}")


async def test_what_the_grammar_forbids_was_never_answered(opened: OpenEngine) -> None:
    engine = opened()
    request = questions(max_new_tokens=24)[0]
    said = (await hear(engine, request)).token_ids[:3]
    with pytest.raises(InvalidRequest) as raised:
        await hear(engine, replace(questions(grammar=Grammar("json_object"), max_new_tokens=24)[0], answered=said))
    assert raised.value.param == "answered"


async def test_tasks_are_refused(opened: OpenEngine) -> None:
    task = replace(ask(user(CAT)), task=QueryTask("What?"), answered=(1,))
    with pytest.raises(InvalidRequest, match="a task's answer"):
        await hear(opened(), task)
