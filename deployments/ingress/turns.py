"""The route of one request in one place: open the turn, stream the answer, close the turn. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from deployments.config import RetinaConfig
from deployments.errors import DeadlineExceeded, ImageNotFound, PartUnavailable, RetinaError
from deployments.ingress.turn_types import (
    SamplingWish,
    TurnChunk,
    TurnEvent,
    TurnFinished,
    TurnInput,
    TurnReply,
    TurnStarted,
)
from deployments.metrics import Metrics
from deployments.types import Chunk, GenerateRequest, Generator, Json, SessionRouter, Turn, TurnOutcome, TurnRequest

__all__ = [
    "SamplingWish",
    "TurnChunk",
    "TurnEvent",
    "TurnFinished",
    "TurnInput",
    "TurnReply",
    "TurnStarted",
    "Turns",
]

T = TypeVar("T")
log = logging.getLogger(__name__)

COMMIT_GRACE_S = 30.0  # storing a finished answer gets this long even when the turn's own time is nearly over
END_GRACE_S = 5.0  # from a generator's last chunk to the end of its stream
PICTURE_GONE = "the session's picture is no longer stored; send another one or begin a new session"


@dataclass(slots=True)
class _Running:
    """A turn under way."""

    asked: TurnInput
    deadline: float  # of the event loop's clock
    turn: Turn | None = None  # set when the lease is ours
    chunks: AsyncGenerator[Chunk, None] | None = None
    pieces: list[str] = field(default_factory=list)
    is_answered: bool = False  # the answer is whole: from here on the turn is committed, never aborted

    @property
    def stage(self) -> str:
        if self.turn is None:
            return "open"
        return "stream" if self.pieces else "first_token"


class Turns:
    """Streams turns over the three parts. Belongs to one event loop."""

    def __init__(
        self,
        router: SessionRouter,
        generators: Mapping[str, Generator],
        config: RetinaConfig,
        metrics: Metrics | None = None,
    ) -> None:
        self._router = router
        self._generators = generators
        self._config = config
        self._timeout_s = config.ingress.turn_timeout_s
        self._tasks: set[asyncio.Task[Any]] = set()  # what must go on after a client left; the loop holds tasks weakly
        self._num_open = 0
        self.metrics = metrics or Metrics()

    async def stream(self, asked: TurnInput) -> AsyncGenerator[TurnEvent, None]:
        """TurnStarted, then TurnChunks, then TurnFinished; the turn is stored before the last piece of text is yielded.

        Until then closing the iterator or cancelling it cancels the generator and leaves the session as it was; such a
        call returns when the slot and the lease are given back. Raises what router and generator raise, and
        DeadlineExceeded, PartUnavailable.
        """
        running = _Running(asked, asyncio.get_running_loop().time() + self._timeout_s)
        self._num_open += 1
        try:
            running.turn = await self._open(running)
            yield TurnStarted(running.turn.session_id, running.turn.model)
            running.chunks = self._generate(running.turn, running)
            while (chunk := await self._next_chunk(running.chunks, running)).finish_reason is None:
                if chunk.text:
                    yield TurnChunk(chunk.text)
            reply = await self._commit(running.turn, running, chunk)
            if chunk.text:
                yield TurnChunk(chunk.text)
            yield TurnFinished(reply)
        except (asyncio.CancelledError, GeneratorExit):
            if not running.is_answered:
                self.metrics.count("ingress_cancelled", label=running.stage)
            raise
        finally:
            self._num_open -= 1
            await self._settle(running)

    async def reply(self, asked: TurnInput) -> TurnReply:
        """The same turn without the pieces."""
        async with contextlib.aclosing(self.stream(asked)) as events:
            async for event in events:
                if isinstance(event, TurnFinished):
                    return event.reply
        raise AssertionError("a turn ends with TurnFinished or raises")

    async def drain(self) -> None:
        """Wait for commits and aborts whose clients are gone."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def statistics(self) -> Json:
        return {"open_turns": self._num_open, "unattended_tasks": len(self._tasks), **self.metrics.snapshot()}

    # ----------------------------------------------------------------------------- steps of a turn

    async def _open(self, running: _Running) -> Turn:
        """In a task of its own: a lease that is granted in the instant of the cancellation must be seen."""
        asked = running.asked
        request = TurnRequest(
            asked.request_id, asked.tenant, asked.session_id, asked.text, image=asked.image, model=asked.model
        )
        opening = self._start(self._router.open_turn(request))
        try:
            return await self._in_time(running.deadline, asyncio.shield(opening))
        except (asyncio.CancelledError, DeadlineExceeded):
            opening.cancel()  # whoever has left must not hold a place among those that wait for the session
            self._start(self._give_back(opening))
            raise

    def _generate(self, turn: Turn, running: _Running) -> AsyncGenerator[Chunk, None]:
        generator = self._generators.get(turn.model)
        if generator is None:
            raise PartUnavailable(f"no generator serves model {turn.model!r}", "model")
        asked = running.asked
        return generator.stream(
            GenerateRequest(
                request_id=asked.request_id,
                tenant=asked.tenant,
                messages=turn.messages,
                sampling=asked.sampling.to_params(self._config.generator_of(turn.model)),
                timeout_s=max(running.deadline - asyncio.get_running_loop().time(), 0.0),
                session_key=turn.session_key,
            )
        )

    async def _next_chunk(self, chunks: AsyncGenerator[Chunk, None], running: _Running) -> Chunk:
        try:
            chunk = await self._in_time(running.deadline, anext(chunks, None))
        except ImageNotFound as error:
            if running.asked.image is not None:
                raise
            raise ImageNotFound(PICTURE_GONE, "image") from error
        if chunk is None:
            raise PartUnavailable("the generator stopped in the middle of the answer")
        running.pieces.append(chunk.text)
        return chunk

    async def _commit(self, turn: Turn, running: _Running, last: Chunk) -> TurnReply:
        """Store the exchange. Goes on when the caller is cancelled: a finished turn is never lost."""
        assert last.finish_reason is not None
        assert last.usage is not None
        assert last.timings is not None
        running.is_answered = True
        response = "".join(running.pieces)
        storing = self._start(self._close(TurnOutcome(turn, response, last.usage)))
        deadline = max(running.deadline, asyncio.get_running_loop().time() + COMMIT_GRACE_S)
        length = await self._in_time(deadline, asyncio.shield(storing))
        return TurnReply(
            request_id=running.asked.request_id,
            message=running.asked.text,
            response=response,
            has_image=turn.has_image,
            model_used=turn.model,
            session_id=turn.session_id,
            conversation_length=length,
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
        )

    # ----------------------------------------------------------------------------- ends of a turn

    async def _settle(self, running: _Running) -> None:
        """Close what is still open. Never raises but CancelledError, and then goes on by itself."""
        if running.turn is not None:
            # asyncio.wait, unlike await: neither does our cancellation reach the task, nor its failure hide the reason
            # why the turn ended. _release logs its failures.
            await asyncio.wait({self._start(self._release(running.turn, running))})

    async def _release(self, turn: Turn, running: _Running) -> None:
        try:
            if running.chunks is not None:
                await self._end(running.chunks, is_finished=running.is_answered)
        except Exception:
            log.exception("the generator of session %s failed while it was closed", turn.session_id)
        finally:
            if not running.is_answered:
                await self._abort(turn)

    async def _end(self, chunks: AsyncGenerator[Chunk, None], *, is_finished: bool) -> None:
        try:
            if is_finished:  # let it come to its own end: closing it here would count as a cancellation there
                await self._in_time(asyncio.get_running_loop().time() + END_GRACE_S, anext(chunks, None))
        finally:
            await chunks.aclose()

    async def _give_back(self, opening: asyncio.Task[Turn]) -> None:
        """The lease of a cancelled open_turn, if it was granted all the same; otherwise the router keeps none."""
        await asyncio.wait({opening})
        if opening.cancelled():
            return
        error = opening.exception()
        if error is None:
            await self._abort(opening.result())
        elif not isinstance(error, RetinaError):  # those are for the client, which is gone or has its own error
            log.error("a turn failed while it was opened for nobody", exc_info=error)

    async def _abort(self, turn: Turn) -> None:
        try:
            await self._router.close_turn(TurnOutcome(turn, None))
        except Exception:
            log.exception("session %s stays closed until its lease expires: the turn was not aborted", turn.session_id)

    async def _close(self, outcome: TurnOutcome) -> int:
        try:
            return await self._router.close_turn(outcome)
        except Exception as error:
            # Logged here because the client that would be told may have left.
            log.warning("the answer for session %s was not stored: %s", outcome.turn.session_id, error)
            raise

    # ----------------------------------------------------------------------------- tasks and time

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_time(self, deadline: float, waiting: Awaitable[T]) -> T:
        # One step at a time: a timeout block around a yield would cancel whichever task pulls the next event.
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the turn did not end within {self._timeout_s:g} s (ingress.turn_timeout_s)"
            ) from error
