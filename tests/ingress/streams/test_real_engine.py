"""Kept streams over a real model: however often what generates dies, the answer is the one of an undisturbed turn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ingress.streams.stream_bench import QUICK, finished, text_of

from deployments.config import parse_config
from deployments.errors import PartUnavailable
from deployments.ingress.running_turn import TurnParts
from deployments.ingress.streams.service import Streams
from deployments.ingress.streams.stores.memory import MemoryStreamStore
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import KeptEvent, SamplingWish, TurnInput
from deployments.ingress.turns import Turns
from deployments.local import Graph, open_graph
from deployments.types import Chunk, GenerateRequest, Generator, Json

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[3]
PICTURE = ROOT / "demo" / "images"


@dataclass(slots=True)
class Mortal:
    """A generator whose every stream dies after so many chunks."""

    generator: Generator
    num_chunks: int
    num_streams: int = 0

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.num_streams += 1
        left = self.num_chunks
        async for chunk in self.generator.stream(request):
            yield chunk
            left -= 1
            if left == 0 and chunk.finish_reason is None:
                raise PartUnavailable("died")

    async def statistics(self) -> Json:
        return {}


@pytest.fixture(scope="module")
def model_config() -> dict[str, object]:
    return {
        "name": "qwen2_vl",
        "family": "qwen2_vl",
        "checkpoint": str(ROOT / "demo" / "checkpoints" / "qwen2_vl"),
    }


@pytest.fixture
async def graph(tmp_path: Path, model_config: dict[str, object]) -> AsyncIterator[Graph]:
    stores = {name: {"store": "memory"} for name in ("images", "session_router")}
    config = parse_config(
        {
            "models": [model_config],
            "data_dir": str(tmp_path),
            "device": "cpu",
            "ingress": {"streams": {"store": "memory"}},
            **stores,
        }
    )
    async with open_graph(config) as opened:
        yield opened


async def ask(graph: Graph, asked: TurnInput, num_chunks: int | None) -> tuple[list[tuple[int, KeptEvent]], int]:
    """The events, and how many times the generator was asked."""
    parts: TurnParts = graph.turns._parts
    mortal = Mortal(parts.generators["qwen2_vl"], num_chunks or 10_000)
    turns = Turns(graph.router, {"qwen2_vl": mortal}, graph.images, graph.config)
    streams = Streams(turns, graph.config, MemoryStreamStore(), pace=QUICK)
    stream_id = await streams.begin(asked)
    events = [event async for event in streams.follow(PUBLIC_TENANT, stream_id)]
    await streams.drain()
    return events, mortal.num_streams


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingWish(max_new_tokens=24, num_logprobs=0),
        SamplingWish(max_new_tokens=24, temperature=1.2, seed=7, repetition_penalty=1.1, stop=("the",)),
    ],
    ids=["greedy", "by chance"],
)
async def test_a_generator_that_dies_again_and_again(graph: Graph, sampling: SamplingWish) -> None:
    picture = await graph.add_image(next(PICTURE.glob("*.png")).read_bytes())

    def asked(session_id: str) -> TurnInput:
        question = "この画像を説明してください。"
        return TurnInput("r", PUBLIC_TENANT, question, session_id, picture, sampling=sampling)

    expected, asked_once = await ask(graph, asked("whole"), None)
    assert asked_once == 1
    for num_chunks in (1, 2, 3):
        events, num_asked = await ask(graph, asked(f"{num_chunks}"), num_chunks)
        assert num_asked > 1
        assert text_of(events) == text_of(expected) == finished(events).reply.response
        assert finished(events).reply.usage.completion_tokens == finished(expected).reply.usage.completion_tokens
        assert finished(events).reply.finish_reason == finished(expected).reply.finish_reason
        ids = [each.chosen.token_id for each in finished(events).reply.logprobs or ()]
        assert ids == [each.chosen.token_id for each in finished(expected).reply.logprobs or ()]
