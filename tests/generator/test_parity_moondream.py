"""Invariant 3 on Moondream checkpoints: the engine's answers to every task equal the published code's, alone and in
any mix.

What the published code answers, in float32, stands in tests/models/moondream_expected.json.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from generator.letters import Answer, ask, ask_task, read

from deployments.config import GeneratorConfig
from deployments.types import (
    Box,
    CaptionTask,
    DetectTask,
    EncodeRequest,
    GenerateRequest,
    Grounding,
    ImageFeatures,
    ImageRef,
    Json,
    Point,
    PointTask,
    QueryTask,
    Task,
)

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.torch
PARTS = json.loads((Path(__file__).parent.parent / "models" / "moondream_expected.json").read_text(encoding="utf-8"))
WITH_ALL_TASKS = 0  # the part in which every kind of task is there
Picture = tuple[int, int, int]  # seed, width, height
Case = tuple[GenerateRequest, Mapping[str, Any]]
Build = Callable[[int], Path]


def make_picture(seed: int, width: int, height: int) -> Any:
    from PIL import Image

    size = (max(2, height // 20), max(2, width // 20), 3)
    noise = (np.random.RandomState(seed).rand(*size) * 255).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def cases_of(part: int) -> list[Case]:
    """What is asked, and what is expected of the answer."""
    cases: list[Case] = []
    for group in PARTS[part]["pictures"]:
        picture = group["picture"]
        images = [ImageRef(json.dumps(picture), picture[1], picture[2], 1, "image/png")] if picture else []
        for expected in group["answers"]:
            request = ask_task(
                to_task(expected["task"]),
                *images,
                request_id=f"{part}-{len(cases)}",
                max_new_tokens=expected["max_new_tokens"],
            )
            cases.append((request, expected))
    return cases


def to_task(given: Mapping[str, Any]) -> Task:
    kinds: Mapping[str, type[Task]] = {
        "caption": CaptionTask,
        "query": QueryTask,
        "detect": DetectTask,
        "point": PointTask,
    }
    fields = {name: value for name, value in given.items() if name != "kind"}
    if "spatial_refs" in fields:
        fields["spatial_refs"] = tuple(map(tuple, fields["spatial_refs"]))
    return kinds[given["kind"]](**fields)


def check(answer: Answer, expected: Mapping[str, Any]) -> None:
    # The engine leaves out white space before the answer, see AnswerText.
    assert answer.text == expected.get("text", "").lstrip()
    kind = Box if expected["task"]["kind"] == "detect" else Point
    assert answer.found == tuple(kind(*numbers) for numbers in expected.get("found", ()))
    thoughts = expected.get("reasoning", {"text": "", "grounding": []})
    assert answer.thought == thoughts["text"]
    assert answer.last.grounding == tuple(
        Grounding(each["start_idx"], each["end_idx"], tuple(Point(*point) for point in each["points"]))
        for each in thoughts["grounding"]
    )


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """build(part) -> folder of the checkpoint that the part was answered by; each is built once."""
    folders: dict[int, Path] = {}

    def build(part: int) -> Path:
        if part not in folders:
            folders[part] = build_checkpoint(tmp_path_factory.mktemp("moondream"), PARTS[part]["checkpoint"])
        return folders[part]

    return build


def build_checkpoint(folder: Path, about: Mapping[str, Any]) -> Path:
    """Raised biases make thoughts point, and answers end."""
    from tiny_moondream import REFERENCE, build_moondream

    def raise_biases(weights: dict[str, torch.Tensor]) -> None:
        for token_id, amount in about.get("raised", {}).items():
            weights["text.lm_head.bias"][int(token_id)] += amount

    config = deepcopy(REFERENCE)
    config["text"]["n_kv_heads"] = about.get("n_kv_heads", config["text"]["n_kv_heads"])
    return build_moondream(folder, config=config, seed=about["seed"], change=raise_biases)


class SeenPictures:
    """A VisionEncoder that knows what the tower saw in each picture."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        return ImageFeatures(self._arrays[request.image.id], "float32", "tower", 0.0)

    async def statistics(self) -> Json:
        return {}


@pytest.fixture(scope="module")
def encoders(build: Build) -> Callable[[int], SeenPictures]:
    """By part. Towers of one seed are one, whatever was changed behind them, and look at each picture once."""
    from deployments.models.registry import open_family

    family = open_family("moondream")
    arrays: dict[int, dict[str, np.ndarray]] = {}

    def look(part: int) -> SeenPictures:
        folder, seen = build(part), arrays.setdefault(PARTS[part]["checkpoint"]["seed"], {})
        preprocess, tower = family.open_preprocessor(folder), family.open_tower(folder, "cpu", "float32")
        for picture in (group["picture"] for group in PARTS[part]["pictures"]):
            if picture and json.dumps(picture) not in seen:
                [rows] = tower.encode([preprocess(make_picture(*picture))])
                seen[json.dumps(picture)] = rows.numpy()
        return SeenPictures(seen)

    return look


@pytest.fixture
def open_moondream(build: Build, encoders: Callable[[int], SeenPictures]) -> Iterator[Callable[..., Any]]:
    """open_moondream(part, is_packed=, **config keys); each engine must be idle and sound when the test ends.

    Packed, its weights are as they are when it is served from a CPU.
    """
    from deployments.generator.engine import Engine
    from deployments.models.registry import open_family

    family, engines = open_family("moondream"), []

    def open_engine(part: int, *, is_packed: bool = False, **config: Any) -> Engine:
        folder = build(part)
        prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", "float32")
        if is_packed:
            language.pack()
        engine = Engine(language, prompts, encoders(part), GeneratorConfig(max_context_tokens=2048, **config))
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        idle, problems = engine.wait_idle(20), engine.check()
        engine.close()
        assert idle
        assert problems == ()


async def ask_all(engine: Any, cases: list[Case]) -> None:
    answers = await asyncio.gather(*(read(engine.stream(request)) for request, _ in cases))
    for answer, (_, expected) in zip(answers, cases, strict=True):
        check(answer, expected)


@pytest.mark.parametrize("is_packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("part", range(len(PARTS)))
async def test_all_tasks_in_one_batch(open_moondream: Any, part: int, is_packed: bool) -> None:
    engine = open_moondream(part, is_packed=is_packed, num_slots=7)
    cases = cases_of(part)
    random.Random(part).shuffle(cases)
    await ask_all(engine, cases)


@pytest.mark.parametrize("alone", [{"mode": "simple"}, {"num_slots": 1}], ids=["simple", "batch"])
@pytest.mark.parametrize("part", range(len(PARTS)))
async def test_one_after_the_other(open_moondream: Any, part: int, alone: dict[str, Any]) -> None:
    cases = cases_of(part)
    if part == WITH_ALL_TASKS:
        cases = cases[::4]
        assert {type(request.task) for request, _ in cases} == {CaptionTask, QueryTask, DetectTask, PointTask}
    await ask_all(open_moondream(part, **alone), cases)


@pytest.mark.parametrize("chunk", [64, 700, 1000])
async def test_joins_and_leaves(open_moondream: Any, chunk: int) -> None:
    """Each beginning is a picture's 730 positions that see each other, larger than some chunks."""
    chance = random.Random(chunk)
    engine = open_moondream(WITH_ALL_TASKS, num_slots=3, prefill_chunk_tokens=chunk)
    cases = chance.sample(cases_of(WITH_ALL_TASKS), 9)
    tasks = []
    for request, _ in cases:
        tasks.append(asyncio.create_task(read(engine.stream(request))))
        leaver = engine.stream(chance.choice(cases)[0])
        await anext(leaver)
        await leaver.aclose()
    for answer, (_, expected) in zip(await asyncio.gather(*tasks), cases, strict=True):
        check(answer, expected)


async def test_a_conversation_rides_along(open_moondream: Any) -> None:
    engine = open_moondream(WITH_ALL_TASKS, num_slots=5)
    talk = ask("Who are you?", "And I?", max_new_tokens=20)
    [alone] = await asyncio.gather(read(engine.stream(talk)))
    together = asyncio.create_task(read(engine.stream(talk)))
    await ask_all(engine, cases_of(WITH_ALL_TASKS)[:4])
    assert (await together).text == alone.text
