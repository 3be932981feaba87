"""Answers the items of a batch, several at a time, each tried again where the service asks for patience."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from deployments.commands.batch_items import Defaults, Given, Item, Source, read_item
from deployments.commands.batch_output import ItemError, ItemLine, Output
from deployments.errors import Overloaded, PartUnavailable, RetinaError, ServerUnreachable, SessionNotFound

if TYPE_CHECKING:
    from deployments.client.service_client import ServiceClient

AHEAD = 4  # with --ordered, times the concurrency: how far an item may be ahead of the one that is waited for
MAX_WAIT_S = 60.0  # before another attempt, also where the service asks for more
_backoff = wait_random_exponential(multiplier=0.5, max=30)


@dataclass(slots=True)
class Tally:
    num_answered: int = 0
    num_failed: int = 0
    num_skipped: int = 0  # answered by an earlier run
    num_failed_before: int = 0  # by an earlier run, and not asked again


@dataclass(slots=True)
class Batch:
    client: ServiceClient
    source: Source
    defaults: Defaults
    output: Output
    concurrency: int
    retries: int
    is_ordered: bool = False
    tally: Tally = field(default_factory=Tally)

    async def run(self) -> AsyncGenerator[Tally, None]:
        """The tally after each item; its line is written by then. Raises ServerUnreachable: that is no item's fault."""
        async with contextlib.aclosing(self._answers()) as lines:
            async for line in lines:
                if line is not None:
                    self.output.write(line)
                    self.tally.num_answered += line.error is None
                    self.tally.num_failed += line.error is not None
                yield self.tally

    async def _answers(self) -> AsyncGenerator[ItemLine | None, None]:
        """None for an item that is done already."""
        room = asyncio.Semaphore(self.concurrency)
        running: deque[asyncio.Task[ItemLine | None]] = deque()
        max_running = self.concurrency * (AHEAD if self.is_ordered else 1)
        try:
            async for given in self.source.items():
                running.append(asyncio.create_task(self._do(given, room)))
                if len(running) >= max_running:
                    await self._wait(running)
                for line in self._finished(running):
                    yield line
            while running:
                await self._wait(running)
                for line in self._finished(running):
                    yield line
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wait(self, running: deque[asyncio.Task[ItemLine | None]]) -> None:
        """For the next one that can be written."""
        if self.is_ordered:
            await asyncio.wait({running[0]})
        else:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _finished(self, running: deque[asyncio.Task[ItemLine | None]]) -> Iterator[ItemLine | None]:
        if self.is_ordered:
            while running and running[0].done():
                yield running.popleft().result()
            return
        for task in [task for task in running if task.done()]:
            running.remove(task)
            yield task.result()

    async def _do(self, given: Given, room: asyncio.Semaphore) -> ItemLine | None:
        async with room:
            item = await asyncio.to_thread(read_item, given, self.source.folder, self.defaults)
            if item.key in self.output.done:
                self.tally.num_skipped += 1
                return None
            if item.key in self.output.failed:
                self.tally.num_failed_before += 1
                return None
            self.output.done.add(item.key)  # the same item again in one input is not done twice
            return await self._answer(item)

    async def _answer(self, item: Item) -> ItemLine:
        line = ItemLine.model_construct(
            id=item.id, fingerprint=item.fingerprint, task=item.task, image=item.image, reply=None, error=None
        )
        try:
            line.reply = await self._attempts()(self._ask, item)
        except ServerUnreachable:
            raise
        except RetinaError as error:
            line.error = ItemError(code=error.code, message=error.message, param=error.param)
        return line

    def _attempts(self) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception(_is_passing), stop=stop_after_attempt(self.retries + 1), wait=_wait_s, reraise=True
        )

    async def _ask(self, item: Item) -> dict[str, object]:
        from deployments.ingress.schemas import ChatRequest

        if item.problem is not None:
            raise item.problem
        assert item.asked is not None
        asked = item.asked
        if item.picture is not None:
            picture = await self.client.add_image(item.picture)
            asked = asked.model_copy(update={"image_id": picture.id})
        if not isinstance(asked, ChatRequest):
            return (await self.client.run_task(asked)).model_dump(mode="json")
        reply = await self.client.chat(asked)
        with contextlib.suppress(SessionNotFound):  # thousands of them would hide people's own
            await self.client.delete_session(reply.session_id)
        return reply.model_dump(mode="json")


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, Overloaded | PartUnavailable)


def _wait_s(state: RetryCallState) -> float:
    """What the service asks for by Retry-After, or a growing random time."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, RetinaError) and error.retry_after_s is not None:
        return min(error.retry_after_s, MAX_WAIT_S)
    return _backoff(state)
