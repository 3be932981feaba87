"""The route of one request in one place: open the turn, stream the answer, close the turn. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from deployments.config import RetinaConfig
from deployments.errors import DeadlineExceeded, ImageNotFound, RetinaError
from deployments.ingress.answer import find_event
from deployments.ingress.deadline import Deadline
from deployments.ingress.running_turn import (
    PICTURE_GONE,
    Complete,
    OpenedTurn,
    RunningTurn,
    TurnParts,
    abort_turn,
)
from deployments.ingress.said import Said
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
from deployments.types import Generator, ImageStore, Json, SessionRouter, Turn, TurnRequest

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


class Turns:
    """Streams turns over the other parts. Belongs to one event loop."""

    def __init__(
        self,
        router: SessionRouter,
        generators: Mapping[str, Generator],
        images: ImageStore,
        config: RetinaConfig,
        metrics: Metrics | None = None,
        complete: Complete | None = None,
    ) -> None:
        self._router = router
        self._images = images
        self._timeout_s = config.ingress.turn_timeout_s
        self._unattended = Unattended()
        self._parts = TurnParts(router, generators, config, self._unattended, complete)
        self._num_open = 0
        self.metrics = metrics or Metrics()

    async def stream(self, asked: TurnInput) -> AsyncGenerator[TurnEvent, None]:
        """TurnStarted, then TurnChunks, then TurnFinished; the turn is stored before the last piece of text is yielded.

        Until then closing the iterator or cancelling it cancels the generator and leaves the session as it was; such a
        call returns when the slot and the lease are given back. Raises what router and generator raise, and
        DeadlineExceeded, PartUnavailable.
        """
        running: RunningTurn | None = None
        self._num_open += 1
        try:
            running = self.run(await self.open(asked))
            yield TurnStarted(running.turn.session_id, running.turn.model)
            async with contextlib.aclosing(running.events()) as events:
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            if running is None or not running.is_answered:
                self.metrics.count("ingress_cancelled", label="open" if running is None else running.stage)
            raise
        finally:
            self._num_open -= 1
            if running is not None:
                await running.settle()

    async def reply(self, asked: TurnInput) -> TurnReply:
        """The same turn without the pieces."""
        return (await find_event(TurnFinished, self.stream(asked))).reply

    async def open(self, asked: TurnInput) -> OpenedTurn:
        """Whoever gets it must `run` it. Cancelled or raising, no lease is left behind."""
        deadline = Deadline.of("turn", self._timeout_s)
        turn = await self._open(asked, deadline)
        try:
            await self._require_pictures(turn, asked, deadline)
        except BaseException:
            await self._unattended.finish(abort_turn(self._router, turn))
            raise
        return OpenedTurn(asked, turn, deadline)

    def reopen(self, asked: TurnInput, turn: Turn, began_s: float, now_s: float) -> OpenedTurn:
        """A turn that another replica opened at `began_s`, Unix time as `now_s`; its deadline stays the same."""
        left_s = began_s + self._timeout_s - now_s
        return OpenedTurn(asked, turn, Deadline.of("turn", self._timeout_s).with_left(left_s))

    def run(
        self,
        opened: OpenedTurn,
        said: Said | None = None,
        *,
        is_kept: bool = False,
        is_ours: Callable[[], Awaitable[bool]] | None = None,
    ) -> RunningTurn:
        return RunningTurn(self._parts, opened, said, is_kept=is_kept, is_ours=is_ours)

    async def drain(self) -> None:
        """Wait for commits and aborts whose clients are gone."""
        await self._unattended.drain()

    def statistics(self) -> Json:
        return {"open_turns": self._num_open, "unattended_tasks": len(self._unattended), **self.metrics.snapshot()}

    # ----------------------------------------------------------------------------- opening

    async def _open(self, asked: TurnInput, deadline: Deadline) -> Turn:
        """In a task of its own: a lease that is granted in the instant of the cancellation must be seen."""
        request = TurnRequest(
            asked.request_id,
            asked.tenant,
            asked.session_id,
            asked.text,
            image=asked.image,
            model=asked.model,
            input=asked.input,
            instructions=asked.instructions,
            follows=asked.follows,
        )
        opening = self._unattended.start(self._router.open_turn(request))
        try:
            return await deadline.wait(asyncio.shield(opening))
        except (asyncio.CancelledError, DeadlineExceeded):
            opening.cancel()  # whoever has left must not hold a place among those that wait for the session
            self._unattended.start(self._give_back(opening))
            raise

    async def _require_pictures(self, turn: Turn, asked: TurnInput, deadline: Deadline) -> None:
        """Refuse a session whose picture was deleted: the generator may remember it and would not ask for it again."""
        shown = {image.id for message in turn.messages for image in message.images}
        for image_id in shown - _new_pictures(asked):
            try:
                await deadline.wait(self._images.find(asked.tenant, image_id))
            except ImageNotFound as error:
                raise ImageNotFound(PICTURE_GONE, "image") from error

    async def _give_back(self, opening: asyncio.Task[Turn]) -> None:
        """The lease of a cancelled open_turn, if it was granted all the same; otherwise the router keeps none."""
        await asyncio.wait({opening})
        if opening.cancelled():
            return
        error = opening.exception()
        if error is None:
            await abort_turn(self._router, opening.result())
        elif not isinstance(error, RetinaError):  # those are for the client, which is gone or has its own error
            log.error("a turn failed while it was opened for nobody", exc_info=error)


def _new_pictures(asked: TurnInput) -> set[str]:
    """Ids of those that this turn brings: they were stored just now."""
    named = {asked.image.id} if asked.image is not None else set()
    return named | {image.id for message in asked.input for image in message.images}
