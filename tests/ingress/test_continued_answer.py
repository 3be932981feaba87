"""An answer that goes on when its generator dies: which failures are ridden out, and what is asked for again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from deployments.errors import Overloaded, PartUnavailable, RetinaError
from deployments.ingress.continued_answer import MAX_TRIES, go_on
from deployments.ingress.deadline import Deadline
from deployments.types import Chunk, GenerateRequest, Json, SamplingParams, Timings, Usage

REQUEST = GenerateRequest("r", "public", (), SamplingParams(), 10)
LAST = Chunk("c", 2, "stop", Usage(1, 0, 0, 4), Timings(0, 0, 0, 0, 0), token_ids=(12,))
CHUNKS = (Chunk("a", 1, token_ids=(10,)), Chunk("", 1, token_ids=(11,)), LAST)


@dataclass(slots=True)
class Dying:
    """Gives what is left of CHUNKS, and fails as it is told: after so many chunks of a stream, once for each entry."""

    failures: list[tuple[int, RetinaError | None]]  # None: it just ends
    answered: list[tuple[int, ...]] = field(default_factory=list)
    num_ended: int = 0

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.answered.append(request.answered)
        after, failure = self.failures.pop(0) if self.failures else (len(CHUNKS), None)
        left = CHUNKS[len(request.answered) :]
        for chunk in left[:after]:
            yield chunk
        if failure is not None:
            raise failure
        self.num_ended += 1

    async def statistics(self) -> Json:
        return {}


async def collect(generator: Dying) -> list[Chunk]:
    return [chunk async for chunk in go_on(generator, REQUEST, Deadline.of("test", 100))]


DIED = PartUnavailable("died")


@pytest.mark.parametrize(
    ("failures", "answered"),
    [
        ([], [()]),
        ([(1, DIED)], [(), (10,)]),
        ([(2, DIED)], [(), (10, 11)]),
        ([(1, None)], [(), (10,)]),  # it stops in the middle
        ([(1, DIED), (1, DIED)], [(), (10,), (10, 11)]),
        ([(1, DIED), (0, Overloaded("full")), (0, DIED)], [(), (10,), (10,), (10,)]),
    ],
)
async def test_every_token_comes_once(failures: list[tuple[int, RetinaError | None]], answered: list[object]) -> None:
    generator = Dying(failures)
    assert await collect(generator) == list(CHUNKS)
    assert generator.answered == answered


async def test_what_dies_before_its_first_token_is_not_shown_to_the_next_replica() -> None:
    generator = Dying([(0, DIED)])
    with pytest.raises(PartUnavailable, match="died"):
        await collect(generator)
    assert generator.answered == [()]


async def test_it_comes_to_its_own_end() -> None:
    generator = Dying([])
    await collect(generator)
    assert generator.num_ended == 1


async def test_it_is_given_up_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.continued_answer.LONGEST_WAIT_S", 0.001)
    generator = Dying([(1, DIED)] + [(0, DIED)] * 100)
    with pytest.raises(PartUnavailable, match="died"):
        await collect(generator)
    assert len(generator.answered) == 1 + MAX_TRIES


@pytest.mark.parametrize("failure", [Overloaded("full"), RetinaError("other")])
async def test_other_failures_are_for_the_client(failure: RetinaError) -> None:
    generator = Dying([(0, failure)])
    with pytest.raises(type(failure)):
        await collect(generator)
    assert len(generator.answered) == 1


async def test_without_token_ids_there_is_no_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingress.test_continued_answer.CHUNKS", (Chunk("a", 1), LAST), raising=False)
    hosted = Hosted([(1, DIED)])
    with pytest.raises(PartUnavailable):
        await collect(hosted)
    assert len(hosted.answered) == 1


class Hosted(Dying):
    """Does not tell the ids of its tokens."""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async for chunk in super().stream(request):
            yield Chunk(chunk.text, chunk.num_tokens, chunk.finish_reason, chunk.usage, chunk.timings)
