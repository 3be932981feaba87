"""How long one waits for an answer, whole and streamed, of every model of a graph: for `retina demo streaming`."""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.ingress.turn_types import SamplingWish, TurnChunk, TurnFinished, TurnInput

if TYPE_CHECKING:
    from deployments.local import Graph
    from deployments.types import ImageRef

QUESTION = "What do you see in this image?"


@dataclass(frozen=True, slots=True)
class Waits:
    """Medians over the rounds, for one model."""

    model: str
    full_ms: float  # question to the whole answer
    first_token_ms: float  # question to the first text, streamed
    num_tokens: int  # of the answer

    @property
    def share(self) -> float:
        """How much of the wait is left when the answer is streamed."""
        return self.first_token_ms / self.full_ms


async def measure(
    graph: Graph, image: ImageRef, question: str, rounds: int, max_new_tokens: int | None
) -> AsyncIterator[Waits]:
    """One model after the other, each alone; its first answer, which looks at the picture, is not counted."""
    for model in graph.config.models:
        await _ask_whole(graph, _question(graph, model.name, image, question, max_new_tokens))
        full_s: list[float] = []
        first_s: list[float] = []
        num_tokens = 0
        for _ in range(rounds):
            asked = _question(graph, model.name, image, question, max_new_tokens)
            waited_s, num_tokens = await _ask_whole(graph, asked)
            full_s.append(waited_s)
            first_s.append(await _ask_streamed(graph, _question(graph, model.name, image, question, max_new_tokens)))
        yield Waits(model.name, statistics.median(full_s) * 1000, statistics.median(first_s) * 1000, num_tokens)


def _question(graph: Graph, model: str, image: ImageRef, text: str, max_new_tokens: int | None) -> TurnInput:
    """In a session of its own."""
    sampling = SamplingWish(max_new_tokens=max_new_tokens)
    return TurnInput(uuid.uuid4().hex, graph.tenant, text, image=image, model=model, sampling=sampling)


async def _ask_whole(graph: Graph, asked: TurnInput) -> tuple[float, int]:
    """Seconds until the answer is there, and its tokens."""
    started_s = time.perf_counter()
    reply = await graph.turns.reply(asked)
    return time.perf_counter() - started_s, reply.usage.completion_tokens


async def _ask_streamed(graph: Graph, asked: TurnInput) -> float:
    """Seconds until the first text; the rest is read as well, so that the next question finds the model idle."""
    started_s = time.perf_counter()
    first_s: float | None = None
    async with contextlib.aclosing(graph.stream(asked)) as events:
        async for event in events:
            if isinstance(event, TurnChunk | TurnFinished) and first_s is None:
                first_s = time.perf_counter() - started_s
    assert first_s is not None, "a turn ends with TurnFinished or raises"
    return first_s
