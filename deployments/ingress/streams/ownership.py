"""The streams that this replica owns: begun here or taken over, run to their end, left to others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass

from deployments.config import RetinaConfig
from deployments.errors import PartUnavailable, StreamAbandoned
from deployments.ingress.request_id import named_request
from deployments.ingress.running_turn import OpenedTurn
from deployments.ingress.said import Said
from deployments.ingress.streams.live_stream import LiveStream, is_held
from deployments.ingress.streams.log_entry import (
    Entry,
    Plan,
    entry_from_json,
    entry_to_json,
    plan_from_json,
    plan_to_json,
    said_in,
)
from deployments.ingress.streams.stores import Hold, NewLog, StreamKey, StreamStore, TakenLog
from deployments.ingress.turn_types import KeptEvent, TurnFailed, TurnFinished, TurnInput, TurnStarted
from deployments.ingress.turns import Turns
from deployments.ingress.unattended import Unattended

log = logging.getLogger(__name__)

LOST = PartUnavailable("the replica that ran this stream died, and its model does not tell what it needs to go on")


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between looks at the store."""

    beat_s: float = 1.0  # signs of life of owners and readers
    stale_s: float = 3.0  # an owner that gave none for so long may be replaced
    sweep_s: float = 5.0  # what is past its time, and background streams whose owner is gone
    first_look_s: float = 0.01  # at a log that another process writes; doubled while nothing is new
    longest_look_s: float = 0.1


class Ownership:
    def __init__(
        self,
        turns: Turns,
        config: RetinaConfig,
        store: StreamStore,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
    ) -> None:
        self.config = config.ingress.streams
        self.store = store
        self.clock = clock  # Unix time: it is compared across processes
        self.pace = pace or Pace()
        self.owner = secrets.token_hex(16)
        self.live: dict[StreamKey, LiveStream] = {}
        self.starting: set[StreamKey] = set()  # in the store already, perhaps, but not in `live`
        self.readers: Counter[StreamKey] = Counter()  # in this process
        self.may_have_strays = False  # logs that are ours and that nobody writes
        self._turns = turns
        self._turn_timeout_s = config.ingress.turn_timeout_s
        self._drives = Unattended()

    async def begin(self, key: StreamKey, asked: TurnInput, *, is_background: bool) -> None:
        """Raises what opening a turn raises, and Overloaded when the tenant has too many streams."""
        began_s = self.clock()
        opened = await self._turns.open(asked)
        started = TurnStarted(opened.turn.session_id, opened.turn.model, key.stream_id)
        plan = plan_to_json(Plan(asked, opened.turn, began_s))
        new = NewLog(key, self.owner, plan, is_background, self.orphan_expires_s())
        with self._starting(key):
            try:
                hold = await self.store.create(
                    new, entry_to_json(Entry(started)), self.config.max_streams, self.clock()
                )
            except BaseException:
                self.may_have_strays = True  # cancelled, it may be created all the same
                await self._turns.run(opened).settle()
                raise
            self._launch(hold, opened, Said(), [started], is_background=is_background)
        self.count("kept")

    async def take_over(self, hold: Hold) -> None:
        """If its owner is gone and nobody else was faster; then it is in `live`.

        Carried to the end when the caller is cancelled: a stream that was taken over must be run.
        """
        await asyncio.shield(self._drives.start(self._take_over(hold), Context()))

    @contextlib.contextmanager
    def reading(self, key: StreamKey) -> Iterator[None]:
        """Somebody in this process reads the stream."""
        self.readers[key] += 1
        try:
            yield
        finally:
            self.readers[key] -= 1
            if not self.readers[key]:
                del self.readers[key]
            if (live := self.live.get(key)) is not None:
                live.read_s = self.clock()

    def abandon(self, live: LiveStream) -> None:
        """Its turn ends without an answer; the session stays as it was."""
        why = f"nobody read the stream for {self.config.keep_s:g} s (ingress.streams.keep_s)"
        live.running.fail(StreamAbandoned(f"{why}, so its turn was given up"))

    def end_expires_s(self) -> float:
        return self.clock() + self.config.retain_s

    def orphan_expires_s(self) -> float:
        """For a stream whose owner dies now and that nobody takes over."""
        return self.clock() + self._turn_timeout_s + self.config.retain_s

    async def drain(self) -> None:
        """Run to their end the streams that somebody reads here; leave the others to whoever comes for them."""
        while self.live:
            for live in list(self.live.values()):
                self._let_go(live)
            await self._drives.wait(timeout_s=self.pace.beat_s)
        await self._drives.drain()

    def count(self, what: str) -> None:
        self._turns.metrics.count("ingress_streams", label=what)

    # ----------------------------------------------------------------------------- running

    @contextlib.contextmanager
    def _starting(self, key: StreamKey) -> Iterator[None]:
        self.starting.add(key)
        try:
            yield
        finally:
            self.starting.discard(key)

    async def _take_over(self, hold: Hold) -> None:
        now_s = self.clock()
        with self._starting(hold.key):
            taken = await self.store.take_over(hold, self.owner, now_s, now_s - self.pace.stale_s)
            if taken is None:
                return
            try:
                self._go_on(taken)
            except Exception:  # its plan is none that this version can read
                log.exception("stream %s cannot go on", hold.key.stream_id)
                self.may_have_strays = True  # the next heartbeat ends it

    def _go_on(self, taken: TakenLog) -> None:
        plan = plan_from_json(taken.plan)
        entries = [entry_from_json(text) for text in taken.entries]
        said = said_in(entries)
        opened = self._turns.reopen(plan.asked, plan.turn, plan.began_s, self.clock())
        events = [entry.event for entry in entries]
        live = self._launch(taken.hold, opened, said, events, is_background=taken.is_background)
        if said.text and not said.token_ids:
            live.running.fail(LOST)
        elif taken.is_stop_asked:
            live.running.stop()
        self.count("taken_over")
        log.warning("stream %s goes on here after %d events", taken.hold.key.stream_id, len(events))

    def _launch(
        self, hold: Hold, opened: OpenedTurn, said: Said, events: list[KeptEvent], *, is_background: bool
    ) -> LiveStream:
        running = self._turns.run(opened, said, is_kept=True, is_ours=lambda: is_held(self.store, hold))
        live = LiveStream(
            hold,
            running,
            self.store,
            events,
            is_background=is_background,
            now_s=self.clock(),
            end_expires_s=self.end_expires_s,
            on_end=lambda last: self._note_end(hold.key, last),
        )
        self.live[hold.key] = live
        # Outside of the request that began it: Ray Serve cancels all that a request has called when its client leaves.
        self._drives.start(self._drive(live, opened.asked.request_id), Context())
        return live

    async def _drive(self, live: LiveStream, request_id: str) -> None:
        key = live.hold.key
        try:
            with named_request(request_id):
                await live.drive()
                if live.is_stray:
                    self.may_have_strays = True
                elif not live.has_ended:
                    await self._release(live)
        finally:
            if self.live.get(key) is live:
                del self.live[key]

    async def _release(self, live: LiveStream) -> None:
        """Somebody else may go on with it at once; nothing happens where somebody does."""
        try:
            await self.store.release(live.hold)
        except PartUnavailable as error:
            log.warning("stream %s waits for the end of its owner's heartbeat: %s", live.hold.key.stream_id, error)

    def _let_go(self, live: LiveStream) -> None:
        if self.readers[live.hold.key] or live.running.is_ending:
            return
        if self.store.is_shared:
            live.running.leave()
        elif not live.is_background:
            live.running.fail(StreamAbandoned("the server was shut down while nobody read the stream"))

    def _note_end(self, key: StreamKey, last: KeptEvent) -> None:
        del self.live[key]
        if isinstance(last, TurnFinished) and last.reply.finish_reason == "cancelled":
            self.count("stopped")
        if isinstance(last, TurnFailed):
            self.count("abandoned" if last.code == StreamAbandoned.code else "failed")
