"""Runs turns whose events are kept: read from any point and by several readers, stopped, and taken over."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

from deployments.config import RetinaConfig
from deployments.errors import InvalidRequest, StreamNotFound
from deployments.ingress.error_replies import shorten
from deployments.ingress.streams.heart import Heart
from deployments.ingress.streams.log_entry import entry_from_json
from deployments.ingress.streams.ownership import Ownership, Pace
from deployments.ingress.streams.stores import Hold, LogView, StreamKey, StreamStore
from deployments.ingress.turn_types import KeptEvent, TurnFailed, TurnFinished, TurnInput
from deployments.ingress.turns import Turns
from deployments.types import Json

MAX_SEED = 2**63
MAX_INDEX = 2**63 - 1  # that a store can look for; nothing comes behind it


class Streams:
    """Belongs to one event loop."""

    def __init__(
        self,
        turns: Turns,
        config: RetinaConfig,
        store: StreamStore,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
    ) -> None:
        self._owned = Ownership(turns, config, store, clock, pace)
        self._heart = Heart(self._owned)
        self._store = store

    def start(self) -> None:
        """Look after streams that other replicas left; needs the event loop. All that uses streams does it, too."""
        self._heart.start()

    async def begin(self, asked: TurnInput, *, stream_id: str | None = None, is_background: bool = False) -> str:
        """Open the turn and let it run; returns the stream's id, an own one if none is given.

        Without a reader it goes on for `keep_s`, in the background to its end. Raises what opening a turn raises, and
        Overloaded when the tenant has too many streams.
        """
        self.start()
        key = StreamKey(asked.tenant, stream_id or f"stream-{secrets.token_hex(16)}")
        await self._owned.begin(key, _repeatable(asked), is_background=is_background)
        return key.stream_id

    async def check(self, tenant: str, stream_id: str, after: int = -1) -> bool:
        """There is or will be something behind the event with index `after`.

        Raises StreamNotFound, and InvalidRequest when there is no such event.
        """
        key = StreamKey(tenant, stream_id)
        if (live := self._owned.live.get(key)) is not None:
            num_events, has_ended = live.num_events, live.has_ended
        else:
            view = await self._view(key, after)
            num_events, has_ended = view.num_entries, view.has_ended
        if not -1 <= after < num_events:
            raise InvalidRequest(
                f"stream {stream_id!r} has {num_events} events until now; it has none {shorten(str(after))}", "after"
            )
        return after + 1 < num_events or not has_ended

    async def ending(self, tenant: str, stream_id: str) -> KeptEvent | None:
        """The last event; None while the stream goes on. Raises StreamNotFound."""
        view = await self._view(StreamKey(tenant, stream_id))
        return entry_from_json(view.entries[-1]).event if view.has_ended else None

    async def follow(self, tenant: str, stream_id: str, after: int = -1) -> AsyncGenerator[tuple[int, KeptEvent], None]:
        """Events behind the one with index `after`, each with its index: 0 is TurnStarted; TurnFinished or TurnFailed
        is the last. Waits for those that are still to come. Raises StreamNotFound.

        While somebody follows, generation goes on. When the replica that generates dies, this one goes on in its place.
        """
        self.start()
        key = StreamKey(tenant, stream_id)
        if after >= 0:
            self._owned.count("resumed")
        with self._owned.reading(key):
            while events := await self._events_after(key, after):
                for event in events:
                    after += 1
                    yield after, event
                    if isinstance(event, TurnFinished | TurnFailed):
                        return

    async def stop(self, tenant: str, stream_id: str) -> None:
        """End the answer where it is, also before its first token. Again, and after the end, changes nothing.

        Another replica's stream ends at that replica's next heartbeat, or here when that replica is gone. Raises
        StreamNotFound.
        """
        self.start()
        key = StreamKey(tenant, stream_id)
        view = await self._view(key)
        await self._store.ask_stop(key)  # also for whoever takes the stream over
        if (live := self._owned.live.get(key)) is not None:
            live.running.stop()
        elif not view.has_ended and self._is_stale(view):
            await self._owned.take_over(Hold(key, view.epoch))

    async def drain(self) -> None:
        """Run to their end the streams that somebody reads here; leave the others to whoever comes for them."""
        await self._owned.drain()
        await self._heart.stop()

    async def close(self) -> None:
        await self._store.close()

    async def statistics(self) -> Json:
        counts = await self._store.count()
        return {
            "store": self._store.kind,
            "owned": len(self._owned.live),
            "readers": self._owned.readers.total(),
            "running": counts.running,
            "ended": counts.ended,
        }

    # ----------------------------------------------------------------------------- reading

    async def _events_after(self, key: StreamKey, after: int) -> list[KeptEvent]:
        """At least one, waiting for it; none where the stream ended with the event before."""
        look_s, touched_s = self._owned.pace.first_look_s, -self._owned.pace.beat_s
        while True:
            if (live := self._owned.live.get(key)) is not None and (events := await live.events_after(after)):
                return events
            view = await self._view(key, after)
            if view.entries or view.has_ended:
                return [entry_from_json(text).event for text in view.entries]
            if self._is_stale(view):
                await self._owned.take_over(Hold(key, view.epoch))
                continue
            now_s = asyncio.get_running_loop().time()
            if now_s - touched_s >= self._owned.pace.beat_s:
                await self._store.touch((key,), self._owned.clock())
                touched_s = now_s
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, self._owned.pace.longest_look_s)

    async def _view(self, key: StreamKey, after: int = -1) -> LogView:
        # Ids are ASCII. What a client made up may hold half a surrogate pair, which no store can look for.
        view = await self._store.read(key, min(after, MAX_INDEX)) if key.stream_id.isascii() else None
        if view is None or view.expires_s <= self._owned.clock():
            raise StreamNotFound(
                f"there is no stream {shorten(key.stream_id)!r}, or not any more; streams are kept for those who ask "
                "with resumable",
                "stream_id",
            )
        return view

    def _is_stale(self, view: LogView) -> bool:
        return view.alive_s < self._owned.clock() - self._owned.pace.stale_s


def _repeatable(asked: TurnInput) -> TurnInput:
    """With a seed where chance decides: only then another replica goes on with the very same answer."""
    if asked.sampling.temperature == 0 or asked.sampling.seed is not None:
        return asked
    return replace(asked, sampling=replace(asked.sampling, seed=secrets.randbelow(MAX_SEED)))
