"""The route of one request in one place: open the turn, stream the answer, close the turn. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from deployments.config import RetinaConfig
from deployments.errors import DeadlineExceeded, ImageNotFound, RetinaError
from deployments.ingress.answer import Answer, ending_of, find_event, open_answer
from deployments.ingress.deadline import Deadline
from deployments.ingress.turn_types import (
    SamplingWish,
    TurnChunk,
    TurnEvent,
    TurnFinished,
    TurnInput,
    TurnReply,
    TurnStarted,
)
from deployments.ingress.unattended import Unattended
from deployments.metrics import Metrics
from deployments.types import (
    Chunk,
    GenerateRequest,
    Generator,
    ImageStore,
    Json,
    SessionRouter,
    TokenLogprob,
    Turn,
    TurnOutcome,
    TurnRequest,
)

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

log = logging.getLogger(__name__)

COMMIT_GRACE_S = 30.0  # storing a finished answer gets this long even when the turn's own time is nearly over
PICTURE_GONE = "the session's picture is no longer stored; send another one or begin a new session"


@dataclass(slots=True)
class _Running:
    """A turn under way."""

    asked: TurnInput
    deadline: Deadline
    turn: Turn | None = None  # set when the lease is ours
    answer: Answer | None = None
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    is_answered: bool = False  # the answer is whole: from here on the turn is committed, never aborted

    @property
    def stage(self) -> str:
        if self.turn is None:
            return "open"
        return self.answer.stage if self.answer is not None else "first_token"


class Turns:
    """Streams turns over the other parts. Belongs to one event loop."""

    def __init__(
        self,
        router: SessionRouter,
        generators: Mapping[str, Generator],
        images: ImageStore,
        config: RetinaConfig,
        metrics: Metrics | None = None,
    ) -> None:
        self._router = router
        self._generators = generators
        self._images = images
        self._config = config
        self._timeout_s = config.ingress.turn_timeout_s
        self._unattended = Unattended()
        self._num_open = 0
        self.metrics = metrics or Metrics()

    async def stream(self, asked: TurnInput) -> AsyncGenerator[TurnEvent, None]:
        """TurnStarted, then TurnChunks, then TurnFinished; the turn is stored before the last piece of text is yielded.

        Until then closing the iterator or cancelling it cancels the generator and leaves the session as it was; such a
        call returns when the slot and the lease are given back. Raises what router and generator raise, and
        DeadlineExceeded, PartUnavailable.
        """
        running = _Running(asked, Deadline.of("turn", self._timeout_s))
        self._num_open += 1
        try:
            running.turn = await self._open(running)
            await self._require_pictures(running.turn, running)
            yield TurnStarted(running.turn.session_id, running.turn.model)
            running.answer = self._generate(running.turn, running)
            while (chunk := await self._next_chunk(running.answer, running)).finish_reason is None:
                if chunk.text or chunk.logprobs:
                    yield TurnChunk(chunk.text, chunk.logprobs)
            reply = await self._commit(running.turn, running, chunk)
            if chunk.text or chunk.logprobs:
                yield TurnChunk(chunk.text, chunk.logprobs)
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
        return (await find_event(TurnFinished, self.stream(asked))).reply

    async def drain(self) -> None:
        """Wait for commits and aborts whose clients are gone."""
        await self._unattended.drain()

    def statistics(self) -> Json:
        return {"open_turns": self._num_open, "unattended_tasks": len(self._unattended), **self.metrics.snapshot()}

    # ----------------------------------------------------------------------------- steps of a turn

    async def _open(self, running: _Running) -> Turn:
        """In a task of its own: a lease that is granted in the instant of the cancellation must be seen."""
        asked = running.asked
        request = TurnRequest(
            asked.request_id, asked.tenant, asked.session_id, asked.text, image=asked.image, model=asked.model
        )
        opening = self._unattended.start(self._router.open_turn(request))
        try:
            return await running.deadline.wait(asyncio.shield(opening))
        except (asyncio.CancelledError, DeadlineExceeded):
            opening.cancel()  # whoever has left must not hold a place among those that wait for the session
            self._unattended.start(self._give_back(opening))
            raise

    async def _require_pictures(self, turn: Turn, running: _Running) -> None:
        """Refuse a session whose picture was deleted: the generator may remember it and would not ask for it again."""
        asked = running.asked
        shown = {image.id for message in turn.messages for image in message.images}
        for image_id in shown - {asked.image.id if asked.image is not None else ""}:
            try:
                await running.deadline.wait(self._images.find(asked.tenant, image_id))
            except ImageNotFound as error:
                raise ImageNotFound(PICTURE_GONE, "image") from error

    def _generate(self, turn: Turn, running: _Running) -> Answer:
        asked = running.asked
        request = GenerateRequest(
            request_id=asked.request_id,
            tenant=asked.tenant,
            messages=turn.messages,
            sampling=asked.sampling.to_params(self._config.generator_of(turn.model)),
            timeout_s=running.deadline.left_s,
            session_key=turn.session_key,
        )
        return open_answer(self._generators, turn.model, request, running.deadline)

    async def _next_chunk(self, answer: Answer, running: _Running) -> Chunk:
        try:
            chunk = await answer.next_chunk()
        except ImageNotFound as error:
            if running.asked.image is not None:
                raise
            raise ImageNotFound(PICTURE_GONE, "image") from error
        running.pieces.append(chunk.text)
        running.logprobs.extend(chunk.logprobs)
        return chunk

    async def _commit(self, turn: Turn, running: _Running, last: Chunk) -> TurnReply:
        """Store the exchange. Goes on when the caller is cancelled: a finished turn is never lost."""
        ending = ending_of(last)
        running.is_answered = True
        response = "".join(running.pieces)
        storing = self._unattended.start(self._close(TurnOutcome(turn, response, ending.usage)))
        length = await running.deadline.with_at_least(COMMIT_GRACE_S).wait(asyncio.shield(storing))
        return TurnReply(
            request_id=running.asked.request_id,
            message=running.asked.text,
            response=response,
            has_image=turn.has_image,
            model_used=turn.model,
            session_id=turn.session_id,
            conversation_length=length,
            finish_reason=ending.finish_reason,
            usage=ending.usage,
            timings=ending.timings,
            logprobs=tuple(running.logprobs) if running.asked.sampling.num_logprobs is not None else None,
        )

    # ----------------------------------------------------------------------------- ends of a turn

    async def _settle(self, running: _Running) -> None:
        """Close what is still open. Never raises but CancelledError, and then goes on by itself."""
        if running.turn is not None:
            await self._unattended.finish(self._release(running.turn, running))

    async def _release(self, turn: Turn, running: _Running) -> None:
        try:
            if running.answer is not None:
                await running.answer.end()
        finally:
            if not running.is_answered:
                await self._abort(turn)

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
