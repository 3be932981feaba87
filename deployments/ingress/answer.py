"""The answer of one generator to one request: its chunks, each in time, and an end that frees its slot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from deployments.errors import PartUnavailable
from deployments.ingress.deadline import Deadline, Watch
from deployments.types import Chunk, FinishReason, GenerateRequest, Generator, Timings, Usage

E = TypeVar("E")
log = logging.getLogger(__name__)

END_GRACE_S = 5.0  # from a generator's last chunk to the end of its stream


@dataclass(frozen=True, slots=True)
class Ending:
    """What the last chunk of an answer says."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings


class Stopped(Exception):
    """The answer was stopped from outside. Never leaves the ingress."""


class Answer:
    """Chunks up to the one with a finish_reason. `end` must be called, however it went."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None], deadline: Deadline) -> None:
        self._chunks = chunks
        self._deadline = deadline
        self._watch = Watch(at_s=deadline.at_s)
        self.has_begun = False
        self.is_whole = False
        self._is_stopped = False

    def stop(self) -> None:
        """Let `next_chunk` raise Stopped, also the call that is under way. `end` remains to be called."""
        self._is_stopped = True
        self._watch.end_now()

    async def next_chunk(self) -> Chunk:
        """Raises what the generator raises, DeadlineExceeded, and PartUnavailable when it stops half-way."""
        try:
            chunk = await self._watch.wait(self._pull)
        except TimeoutError as error:
            if self._is_stopped:
                raise Stopped from None
            raise self._deadline.exceeded() from error
        if chunk is None:
            raise PartUnavailable("the generator stopped in the middle of the answer")
        self.has_begun = True
        self.is_whole = chunk.finish_reason is not None
        return chunk

    @property
    def stage(self) -> str:
        """Where a client that leaves now leaves it."""
        return "stream" if self.has_begun else "first_token"

    async def end(self) -> None:
        """Cancels the request if it is not answered yet. Failures are logged: the request has its own outcome."""
        try:
            if self.is_whole:  # let it come to its own end: closing it here would count as a cancellation there
                async with asyncio.timeout(END_GRACE_S):
                    await anext(self._chunks, None)
        except Exception:
            log.exception("a generator failed after its last chunk")
        finally:
            self._watch.close()
            await self._close()

    def _pull(self) -> Awaitable[Chunk | None]:
        return anext(self._chunks, None)

    async def _close(self) -> None:
        try:
            await self._chunks.aclose()
        except Exception:
            log.exception("a generator failed while it was closed")


Ask = Callable[[Generator, GenerateRequest, Deadline], AsyncGenerator[Chunk, None]]


def open_answer(
    generators: Mapping[str, Generator],
    model: str,
    request: GenerateRequest,
    deadline: Deadline,
    ask: Ask | None = None,  # in place of the generator's own stream
) -> Answer:
    """Raises PartUnavailable for a model without a generator."""
    generator = generators.get(model)
    if generator is None:
        raise PartUnavailable(f"no generator serves model {model!r}", "model")
    chunks = ask(generator, request, deadline) if ask is not None else generator.stream(request)
    return Answer(chunks, deadline)


def ending_of(last: Chunk) -> Ending:
    assert last.finish_reason is not None
    assert last.usage is not None
    assert last.timings is not None
    return Ending(last.finish_reason, last.usage, last.timings)


async def find_event(kind: type[E], events: AsyncGenerator[object, None]) -> E:
    """The first event of this kind; the others are passed over. Closes the events in any case."""
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"events end with {kind.__name__} or raise")
