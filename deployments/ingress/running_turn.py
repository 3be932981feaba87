"""One opened turn: its answer is generated and stored, or it is ended early. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from deployments.config import RetinaConfig
from deployments.errors import ImageNotFound, RetinaError
from deployments.ingress.answer import Answer, Stopped, ending_of, open_answer
from deployments.ingress.continued_answer import go_on
from deployments.ingress.deadline import Deadline
from deployments.ingress.said import Said
from deployments.ingress.turn_types import Draft, TurnChunk, TurnEnd, TurnFinished, TurnInput, TurnReply
from deployments.ingress.unattended import Unattended
from deployments.prices import cost_of_answer
from deployments.record_types import Record
from deployments.types import (
    Chunk,
    GenerateRequest,
    Generator,
    SessionRouter,
    Timings,
    Turn,
    TurnOutcome,
    Usage,
)

log = logging.getLogger(__name__)

Complete = Callable[[Draft, TurnReply, Turn], Record]  # the reply's conversation_length is not known yet, it says 0

COMMIT_GRACE_S = 30.0  # storing a finished answer gets this long even when the turn's own time is nearly over
PICTURE_GONE = "the session's picture is no longer stored; send another one or begin a new session"


@dataclass(frozen=True, slots=True)
class TurnParts:
    """What all turns of an ingress work with."""

    router: SessionRouter
    generators: Mapping[str, Generator]
    config: RetinaConfig
    unattended: Unattended
    complete: Complete | None


@dataclass(frozen=True, slots=True)
class OpenedTurn:
    """The lease is held. Whoever has this runs the turn or aborts it."""

    asked: TurnInput
    turn: Turn
    deadline: Deadline


class RunningTurn:
    """Pull `events` once, or call `settle`. Belongs to one event loop."""

    def __init__(
        self,
        parts: TurnParts,
        opened: OpenedTurn,
        said: Said | None = None,  # of an answer that another replica began
        *,
        is_kept: bool = False,  # a generator that dies is replaced by another one that goes on with the answer
        is_ours: Callable[[], Awaitable[bool]] | None = None,  # asked before the session is touched
    ) -> None:
        self._parts = parts
        self._opened = opened
        self.said = said or Said()
        self._is_kept = is_kept
        self._is_ours = is_ours
        self._answer: Answer | None = None
        self._num_sent_ids = len(self.said.token_ids)
        self._is_stopped = False
        self._failure: RetinaError | None = None
        self._is_left = False
        self._is_closed = False  # the lease is given back, or the answer is being stored
        self.is_answered = False  # the answer is whole: from here on the turn is committed, never aborted

    # ----------------------------------------------------------------------------- from outside

    @property
    def turn(self) -> Turn:
        return self._opened.turn

    @property
    def is_ending(self) -> bool:
        """It was stopped, or failed from outside: the end comes by itself."""
        return self._is_stopped or self._failure is not None

    @property
    def stage(self) -> str:
        return self._answer.stage if self._answer is not None else "first_token"

    def stop(self) -> None:
        """Let the answer end where it is; what came until now is stored. Too late, it changes nothing."""
        if not self.is_ending:
            self._is_stopped = True
            self._interrupt()

    def fail(self, error: RetinaError) -> None:
        """End the turn with this error; the session stays as it was. Too late or after a stop, it changes nothing."""
        if not self.is_ending:
            self._failure = error
            self._interrupt()

    def leave(self) -> None:
        """End without an event and without touching the session: somebody else goes on with the turn."""
        self._is_left = True
        self._interrupt()

    async def events(self) -> AsyncGenerator[TurnChunk | TurnFinished, None]:
        """As Turns.stream after its TurnStarted."""
        try:
            chunk = await self._next_chunk()
            while chunk is not None and chunk.finish_reason is None:
                if chunk.text or chunk.logprobs:
                    yield self._to_event(chunk)
                chunk = await self._next_chunk()
            if self._is_left or not await self._may_close():
                self._is_left = True
            elif chunk is not None:
                reply = await self._commit(chunk)
                if chunk.text or chunk.logprobs:
                    yield self._to_event(chunk)
                yield TurnFinished(reply)
            else:
                yield TurnFinished(await self._end_early())
        finally:
            await self.settle()

    async def settle(self) -> None:
        """Close what is still open. Never raises but CancelledError, and then goes on by itself."""
        await self._parts.unattended.finish(self._release())

    # ----------------------------------------------------------------------------- the answer

    def _interrupt(self) -> None:
        if self._answer is not None and not self.is_answered:
            self._answer.stop()

    async def _next_chunk(self) -> Chunk | None:
        """None when the answer is ended from outside."""
        if self._answer is None and not (self.is_ending or self._is_left):
            self._answer = self._generate()
        try:
            if self._answer is None:
                raise Stopped
            chunk = await self._answer.next_chunk()
        except Stopped:
            if self._failure is not None and not self._is_left:
                raise self._failure from None
            return None
        except ImageNotFound as error:
            if self._opened.asked.image is not None:
                raise
            raise ImageNotFound(PICTURE_GONE, "image") from error
        self.said.add(chunk)
        return chunk

    def _generate(self) -> Answer:
        asked, turn, deadline = self._opened.asked, self._opened.turn, self._opened.deadline
        request = GenerateRequest(
            request_id=asked.request_id,
            tenant=asked.tenant,
            messages=turn.messages,
            sampling=asked.sampling.to_params(self._parts.config.generator_of(turn.model)),
            timeout_s=deadline.left_s,
            session_key=turn.session_key,
            answered=tuple(self.said.token_ids),
            keeps_all=asked.keeps_all,
        )
        return open_answer(self._parts.generators, turn.model, request, deadline, go_on if self._is_kept else None)

    def _to_event(self, chunk: Chunk) -> TurnChunk:
        """With the ids of the chunks that had nothing to show, too."""
        new_ids = tuple(self.said.token_ids[self._num_sent_ids :])
        self._num_sent_ids = len(self.said.token_ids)
        return TurnChunk(chunk.text, chunk.logprobs, new_ids)

    # ----------------------------------------------------------------------------- the end

    async def _may_close(self) -> bool:
        return self._is_ours is None or await self._is_ours()

    async def _commit(self, last: Chunk) -> TurnReply:
        ending = ending_of(last)
        return await self._store(self._to_reply(ending.finish_reason, ending.usage, ending.timings))

    async def _end_early(self) -> TurnReply:
        """With what there is of the answer; without a word of it the session stays as it was."""
        if self._answer is not None:
            await self._parts.unattended.finish(self._answer.end())
        reply = self._to_reply("cancelled", self.said.usage_so_far(), self.said.timings_so_far())
        if reply.response:
            return await self._store(reply)
        return replace(reply, conversation_length=await self._close(TurnOutcome(self.turn, None)))

    async def _store(self, reply: TurnReply) -> TurnReply:
        """The exchange, and its record. Goes on when the caller is cancelled: a finished turn is never lost."""
        self.is_answered = True
        outcome = TurnOutcome(self.turn, reply.response, reply.usage, self._records(reply))
        return replace(reply, conversation_length=await self._close(outcome))

    def _records(self, reply: TurnReply) -> tuple[Record, ...]:
        draft = self._opened.asked.draft
        if draft is None:
            return ()
        assert self._parts.complete is not None, "who makes drafts also says how they are completed"
        return (self._parts.complete(draft, reply, self.turn),)

    async def _close(self, outcome: TurnOutcome) -> int:
        self._is_closed = True
        closing = self._parts.unattended.start(self._tell_router(outcome))
        return await self._opened.deadline.with_at_least(COMMIT_GRACE_S).wait(asyncio.shield(closing))

    def _to_reply(self, finish_reason: TurnEnd, usage: Usage, timings: Timings) -> TurnReply:
        asked, turn = self._opened.asked, self._opened.turn
        return TurnReply(
            request_id=asked.request_id,
            message=asked.text or turn.messages[-1].text,
            response=self.said.text,
            has_image=turn.has_image,
            model_used=turn.model,
            session_id=turn.session_id,
            conversation_length=0,
            finish_reason=finish_reason,
            usage=usage,
            timings=timings,
            logprobs=tuple(self.said.logprobs) if asked.sampling.num_logprobs is not None else None,
            lease=turn.lease,
            cost=cost_of_answer(self._parts.config, turn.model, usage),
        )

    async def _release(self) -> None:
        try:
            if self._answer is not None:
                await self._answer.end()
        finally:
            if not self._is_closed and not self._is_left and await self._may_close():
                self._is_closed = True
                await abort_turn(self._parts.router, self.turn)

    async def _tell_router(self, outcome: TurnOutcome) -> int:
        try:
            return await self._parts.router.close_turn(outcome)
        except Exception as error:
            # Logged here because the client that would be told may have left.
            log.warning("the answer for session %s was not stored: %s", outcome.turn.session_id, error)
            if outcome.answer is not None:
                # It changes nothing where the answer was stored after all. Without us: the client need not wait.
                self._parts.unattended.start(abort_turn(self._parts.router, outcome.turn))
            raise


async def abort_turn(router: SessionRouter, turn: Turn) -> None:
    """The session stays as it was. Failures are logged."""
    try:
        await router.close_turn(TurnOutcome(turn, None))
    except Exception:
        log.exception("session %s stays closed until its lease expires: the turn was not aborted", turn.session_id)
