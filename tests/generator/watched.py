"""An engine over a tiny checkpoint whose choices a test sees, and the crowd in which its answers must stay the same."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from generator.letters import read

from deployments.config import GeneratorConfig
from deployments.types import GenerateRequest, VisionEncoder

Answer = tuple[tuple[int, ...], str]  # token ids with the stop token; text


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

    async def ask(self, request: GenerateRequest) -> Answer:
        """Usage must count the tokens of the answer, without the one that stops it."""
        request = replace(request, request_id=f"asked-{next(self.numbers)}")  # the same is asked more than once
        answer = await read(self.engine.stream(request))
        ids = tuple(self.ids[request.request_id])
        assert answer.last.usage is not None
        is_stopped = ids[-1] in self.engine._builder._prompts.stop_token_ids
        assert answer.last.usage.completion_tokens == len(ids) - is_stopped
        assert answer.last.finish_reason == ("stop" if is_stopped else "length")
        return ids, answer.text


@contextlib.contextmanager
def open_watched(
    family_name: str, folder: Path, encoder: VisionEncoder, mode: str, **settings: int
) -> Iterator[Watched]:
    """In mode "packed" the batch runs over packed weights, as it does when it is served from a CPU.

    At the end the engine must be idle and in order.
    """
    from deployments.generator.engine import Engine
    from deployments.models.registry import open_family

    family = open_family(family_name)
    prompts, language = family.open_prompt_format(folder), family.open_language(folder, "cpu", "float32")
    if mode == "packed":
        language.pack()
    config = GeneratorConfig.model_validate({"mode": "simple" if mode == "simple" else "batch", **settings})
    engine = Engine(language, prompts, encoder, config)
    yield Watched(engine)
    idle, problems = engine.wait_idle(20), engine.check()
    engine.close()
    assert idle
    assert problems == ()


async def check_each_alone(
    watched: Watched, requests: Sequence[GenerateRequest], expected: Sequence[tuple[Any, ...]]
) -> None:
    assert [await watched.ask(request) for request in requests] == expected
    assert len({ids for ids, _ in expected}) == len(expected), "the questions should be told apart by their answers"


async def check_in_a_crowd(
    watched: Watched, requests: Sequence[GenerateRequest], expected: Sequence[tuple[Any, ...]]
) -> None:
    """Each request twice, in any order, in a batch that others join and leave."""
    chance = random.Random(3)
    order = list(range(len(requests))) * 2
    chance.shuffle(order)
    tasks = []
    for number in order:
        tasks.append(asyncio.create_task(watched.ask(requests[number])))
        leaver = watched.engine.stream(requests[chance.randrange(len(requests))])
        await anext(leaver)
        await leaver.aclose()
    assert await asyncio.gather(*tasks) == [expected[number] for number in order]
