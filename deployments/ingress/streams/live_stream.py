"""A stream that this replica owns: pulls its turn's events into the log, and hands them to readers in this process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from deployments.errors import PartUnavailable, RetinaError
from deployments.ingress.running_turn import RunningTurn
from deployments.ingress.streams.log_entry import Entry, entry_to_json
from deployments.ingress.streams.stores import Hold, HoldLost, StreamStore
from deployments.ingress.turn_types import KeptEvent, TurnChunk, TurnFailed, TurnFinished

log = logging.getLogger(__name__)

INTERNAL = RetinaError("something went wrong on our side; the log has the details")


@retry(
    retry=retry_if_exception_type(PartUnavailable),
    wait=wait_random_exponential(multiplier=0.05, max=1),
    stop=stop_after_delay(10),
    reraise=True,
)
async def _append_at_last(store: StreamStore, hold: Hold, entries: Sequence[str], expires_s: float | None) -> None:
    await store.append(hold, entries, expires_s)


async def append(store: StreamStore, hold: Hold, entries: Sequence[str], expires_s: float | None = None) -> None:
    """Rides out what passes: another process that holds the store, a disk that is full for a moment."""
    try:
        await store.append(hold, entries, expires_s)
    except PartUnavailable:  # not around every append: the books that a retry keeps cost more than an append does
        await _append_at_last(store, hold, entries, expires_s)


async def is_held(store: StreamStore, hold: Hold) -> bool:
    """Nobody took the log over. A store that cannot tell says no: then the session is not ours to touch."""
    try:
        await append(store, hold, ())
    except HoldLost:
        return False
    except PartUnavailable:
        log.exception("the session of stream %s stays closed until its lease expires", hold.key.stream_id)
        return False
    return True


class LiveStream:
    def __init__(
        self,
        hold: Hold,
        running: RunningTurn,
        store: StreamStore,
        events: list[KeptEvent],  # logged already
        *,
        is_background: bool,
        now_s: float,
        end_expires_s: Callable[[], float],  # Unix time until which a stream that ends now can be read
        on_end: Callable[[KeptEvent], None],  # told the last event before any reader is
    ) -> None:
        self.hold = hold
        self.running = running
        self.is_background = is_background
        self.read_s = now_s  # Unix time when a reader was last there; the beginning counts
        self.has_ended = False  # its last event is logged
        self.is_stray = False  # it has ended, but its log does not say so
        self._store = store
        self._events = events
        self._has_usage = any(isinstance(event, TurnChunk) for event in events)
        self._end_expires_s = end_expires_s
        self._on_end = on_end
        self._is_over = False  # no more events come from here: it has ended, or goes on elsewhere
        self._changed = asyncio.Event()

    @property
    def num_events(self) -> int:
        return len(self._events)

    async def drive(self) -> None:
        """To the end of the turn, which is its last event, or until it is left to others. Raises nothing."""
        try:
            await self._log_events()
        except HoldLost:
            log.info("stream %s goes on elsewhere", self.hold.key.stream_id)
        except RetinaError as error:
            await self._end_with(error)
        except Exception:
            log.exception("stream %s failed", self.hold.key.stream_id)
            await self._end_with(INTERNAL)
        finally:
            self._is_over = True
            self._wake()

    async def events_after(self, index: int) -> list[KeptEvent]:
        """Waits for them. Empty when none will come from here: the store tells what became of the stream."""
        while len(self._events) <= index + 1 and not self._is_over:
            await self._changed.wait()
        return self._events[index + 1 :]

    async def _log_events(self) -> None:
        async with contextlib.aclosing(self.running.events()) as events:
            async for event in events:
                try:
                    await self._append(self._to_entry(event))
                except HoldLost:
                    self.running.leave()  # before the events are closed: the session is not ours any more
                    raise

    def _to_entry(self, event: TurnChunk | TurnFinished) -> Entry:
        if self._has_usage or not isinstance(event, TurnChunk):
            return Entry(event)
        self._has_usage = True
        said = self.running.said
        return Entry(event, said.usage, said.timings)

    async def _append(self, entry: Entry) -> None:
        """Readers see what is in the store and nothing else: another replica might have to go on from there."""
        is_last = isinstance(entry.event, TurnFinished | TurnFailed)
        expires_s = self._end_expires_s() if is_last else None
        await append(self._store, self.hold, (entry_to_json(entry),), expires_s)
        self._events.append(entry.event)
        if is_last:
            self.has_ended = True
            self._on_end(entry.event)
        self._wake()

    async def _end_with(self, error: RetinaError) -> None:
        failed = failure(error)
        try:
            await self._append(Entry(failed))
        except HoldLost:
            log.info("stream %s failed, but goes on elsewhere: %s", self.hold.key.stream_id, error)
        except PartUnavailable:
            log.exception("stream %s failed, and its store, too", self.hold.key.stream_id)
            self._events.append(failed)  # readers here must hear of it; a later heartbeat ends the log
            self.is_stray = True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def failure(error: RetinaError) -> TurnFailed:
    return TurnFailed(error.code, error.message, error.param, error.status)
