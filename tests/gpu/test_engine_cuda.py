"""The engine on a GPU: captured steps, steps as they come, and the slow twin give one answer. Skipped without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from generator.letters import ask, read

from deployments.config import GeneratorConfig
from deployments.types import ImageFeatures, Json

pytestmark = pytest.mark.torch
TEXTS = ("Hello, my name is Ada.", "What is 2 + 2?", "Describe a boat in five words.", "日本 or 🙂?", "Why?", "Count.")


@pytest.fixture(autouse=True)
def _gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")


class NoPictures:
    async def encode(self, request: Any) -> ImageFeatures:
        raise AssertionError("the questions are about no picture")

    async def statistics(self) -> Json:
        return {}


def answers_of(folder: Path, **settings: Any) -> list[str]:
    """Of all questions at once; the engine must be idle and in order afterwards."""
    from deployments.generator.engine import Engine
    from deployments.models.registry import open_family

    family = open_family("smolvlm")
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cuda", "float32")
    engine = Engine(language, prompts, NoPictures(), GeneratorConfig.model_validate(settings))

    async def ask_all() -> list[str]:
        requests = [ask(text, request_id=text, max_new_tokens=40) for text in TEXTS]
        return [answer.text for answer in await asyncio.gather(*(read(engine.stream(each)) for each in requests))]

    answers = asyncio.run(ask_all())
    idle, problems = engine.wait_idle(20), engine.check()
    engine.close()
    assert idle
    assert problems == ()
    return answers


def test_captured_steps_change_nothing(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint()
    expected = answers_of(folder, mode="simple")
    assert answers_of(folder, cuda_graphs=False) == expected
    assert answers_of(folder, cuda_graphs=True) == expected
    assert answers_of(folder, cuda_graphs=True, num_slots=3) == expected


def test_a_share_of_the_free_memory(tiny_checkpoint: Any) -> None:
    folder = tiny_checkpoint()
    assert answers_of(folder, kv_cache_share=0.1) == answers_of(folder)
