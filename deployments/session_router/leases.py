"""Takes sessions for turns, one turn at a time and in order of arrival, and gives them back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable

from deployments.config import SessionRouterConfig
from deployments.errors import SessionBusy
from deployments.metrics import Metrics
from deployments.session_router.changes import give_back, take
from deployments.session_router.line import LineFull, Lines, Place
from deployments.session_router.stores import Change, Lease, SessionKey, SessionStore, StoredSession
from deployments.session_router.uninterrupted import Uninterrupted

logger = logging.getLogger(__name__)

# A turn that closes in another process cannot wake us: look again after this long, doubled each time.
FIRST_LOOK_S = 0.01
LONGEST_LOOK_S = 0.2
MIN_RETRY_AFTER_S = 1.0


class Leases:
    def __init__(
        self,
        config: SessionRouterConfig,
        store: SessionStore,
        clock: Callable[[], float],  # Unix time in seconds: leases are compared across processes
        metrics: Metrics,
        uninterrupted: Uninterrupted,
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._uninterrupted = uninterrupted
        self._lines = Lines(config.max_waiting_turns)

    @property
    def num_waiting(self) -> int:
        return self._lines.num_waiting

    async def take(self, key: SessionKey, token: str) -> StoredSession:
        """The session, held by `token` from now on. Cancelled, it leaves no lease behind.

        Raises SessionBusy: at once when enough turns wait already, otherwise after lease_wait_s.
        """
        deadline = asyncio.get_running_loop().time() + self._config.lease_wait_s
        try:
            async with self._lines.stand(key, deadline) as place:
                return await self._take_at_head(key, token, place, deadline)
        except TimeoutError:
            raise self._busy(key, f"waited {self._config.lease_wait_s:g} s for it") from None
        except LineFull:
            raise self._busy(key, f"no more than {self._config.max_waiting_turns} may wait for it") from None

    async def give_back(self, key: SessionKey, token: str) -> Change:
        """Changes nothing when `token` does not hold the session any more."""
        change = await self._store.update(key, functools.partial(give_back, token=token))
        self._lines.wake(key)
        return change

    def wake(self, key: SessionKey) -> None:
        """Say that the session became free otherwise."""
        self._lines.wake(key)

    def _busy(self, key: SessionKey, why: str) -> SessionBusy:
        self._metrics.count("session_router_turns", label="busy")
        retry_after_s = max(MIN_RETRY_AFTER_S, self._config.lease_wait_s)
        return SessionBusy(f"session {key.session_id!r} has another turn open; {why}", "session_id", retry_after_s)

    async def _take_at_head(self, key: SessionKey, token: str, place: Place, deadline: float) -> StoredSession:
        """Try, wait until the session may have become free, try again. Raises TimeoutError, LineFull."""
        loop = asyncio.get_running_loop()
        look_s = FIRST_LOOK_S
        while True:
            place.freed.clear()  # before the try: a turn that closes during it is then not missed
            stored = await self._try(key, token)
            if stored.has_lease(token):
                return stored
            if loop.time() >= deadline:
                raise TimeoutError
            place.wait_here()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, loop.time() + self._until_free(stored, look_s))):
                    await place.freed.wait()
            look_s = min(2 * look_s, LONGEST_LOOK_S)

    def _until_free(self, stored: StoredSession, look_s: float) -> float:
        """Seconds after which the session may be free although nobody told us."""
        assert stored.lease is not None, "a session without a lease is taken"
        expiry_s = max(FIRST_LOOK_S, stored.lease.until_s - self._clock())
        return min(expiry_s, look_s) if self._store.is_shared else expiry_s

    async def _try(self, key: SessionKey, token: str) -> StoredSession:
        """The session with our lease, or with the one that is in the way."""
        now_s = self._clock()
        lease = Lease(token, now_s + self._config.lease_s)
        taking = asyncio.ensure_future(self._store.update(key, functools.partial(take, lease=lease, now_s=now_s)))
        try:
            change = await asyncio.shield(taking)
        except asyncio.CancelledError:
            await self._uninterrupted.run(self._undo(taking, key, token))
            raise
        assert change.after is not None, "taking deletes nothing"
        if change.before is not None and change.before.lease is not None and change.after.has_lease(token):
            logger.warning("session %s: a turn outlived its lease, the next one took over", key.session_id)
            self._metrics.count("session_router_turns", label="expired")
        return change.after

    async def _undo(self, taking: asyncio.Future[Change], key: SessionKey, token: str) -> None:
        await asyncio.wait({taking})
        if taking.exception() is None:
            await self.give_back(key, token)
