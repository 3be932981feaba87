"""The heartbeat of this replica's streams: signs of life out, wishes of others in, and what nobody wants any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextvars import Context

from deployments.errors import PartUnavailable
from deployments.ingress.streams.live_stream import INTERNAL, LiveStream, failure
from deployments.ingress.streams.log_entry import Entry, entry_to_json
from deployments.ingress.streams.ownership import Ownership
from deployments.ingress.streams.stores import HoldLost, Sign

log = logging.getLogger(__name__)


class Heart:
    def __init__(self, owned: Ownership) -> None:
        self._owned = owned
        self._swept_s = -1.0  # of the event loop's clock; at the first beat it is time
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Again, it changes nothing."""
        if self._beating is None:
            self._beating = asyncio.create_task(self._beat_on(), context=Context())  # of no request

    async def stop(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait({beating})

    async def beat(self) -> None:
        """Raises PartUnavailable."""
        owned = self._owned
        elsewhere = [key for key in owned.readers if key not in owned.live]
        if elsewhere:
            await owned.store.touch(elsewhere, owned.clock())
        if owned.live or owned.may_have_strays:
            await self._beat_for_live(list(owned.live.values()))
        now_s = asyncio.get_running_loop().time()
        if self._swept_s < 0 or now_s - self._swept_s >= owned.pace.sweep_s:
            self._swept_s = now_s
            await self._sweep()

    async def _beat_on(self) -> None:
        while True:
            try:
                await self.beat()
            except PartUnavailable as error:
                log.warning("a heartbeat of the kept streams failed: %s", error)
            except Exception:
                log.exception("a heartbeat of the kept streams failed")
            await asyncio.sleep(self._owned.pace.beat_s)

    async def _beat_for_live(self, before: list[LiveStream]) -> None:
        owned = self._owned
        owned.may_have_strays = False  # before the look, so that one of which we hear meanwhile is not forgotten
        try:
            by_hold = {sign.hold: sign for sign in await self._give_sign()}
            for live in before:
                sign = by_hold.pop(live.hold, None)
                if owned.live.get(live.hold.key) is live:
                    self._heed(live, sign)
            for sign in by_hold.values():
                await self._end_stray(sign)
        except PartUnavailable:
            owned.may_have_strays = True
            raise

    async def _give_sign(self) -> tuple[Sign, ...]:
        owned = self._owned
        return await owned.store.beat(owned.owner, owned.clock(), owned.orphan_expires_s())

    def _heed(self, live: LiveStream, sign: Sign | None) -> None:
        owned = self._owned
        if sign is None:  # somebody else has it, or it is in its last steps
            if not live.has_ended:
                live.running.leave()
            return
        if sign.is_stop_asked:
            live.running.stop()
        live.read_s = max(live.read_s, sign.read_s)
        if owned.readers[live.hold.key]:
            live.read_s = owned.clock()
        elif not live.is_background and owned.clock() - live.read_s > self._patience_s(live, sign):
            owned.abandon(live)

    def _patience_s(self, live: LiveStream, sign: Sign) -> float:
        """How long without a sign of a reader. Of one elsewhere it comes once a beat, and may be late.

        A beat is what the first reader has to come, also where nothing is kept for anybody.
        """
        pace = self._owned.pace
        return max(self._owned.config.keep_s, pace.stale_s if sign.read_s == live.read_s else pace.beat_s)

    async def _end_stray(self, sign: Sign) -> None:
        """Its store failed when its end was to be written, or whoever began it left in that instant."""
        key = sign.hold.key
        if key in self._owned.starting or key in self._owned.live:
            return
        entry = entry_to_json(Entry(failure(INTERNAL)))
        with contextlib.suppress(HoldLost):  # it has ended or goes on elsewhere
            await self._owned.store.append(sign.hold, (entry,), self._owned.end_expires_s())

    async def _sweep(self) -> None:
        owned = self._owned
        await owned.store.expire(owned.clock())
        for hold in await owned.store.orphans(owned.clock() - owned.pace.stale_s):
            await owned.take_over(hold)
