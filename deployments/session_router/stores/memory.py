"""Sessions and records in the memory of one process: gone with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from deployments.record_types import Record
from deployments.session_router.stores import Change, SessionCounts, SessionKey, StoredSession
from deployments.session_router.stores.memory_records import MemoryRecords
from deployments.types import SessionSummary


class MemorySessionStore(MemoryRecords):
    """Used by one event loop. Nothing here awaits, so every method is atomic."""

    kind = "memory"
    is_shared = False

    def __init__(self) -> None:
        super().__init__()
        self._tenants: defaultdict[str, dict[str, StoredSession]] = defaultdict(dict)

    async def read(self, key: SessionKey) -> StoredSession | None:
        return self._tenants[key.tenant].get(key.session_id)

    async def update(
        self,
        key: SessionKey,
        decide: Callable[[StoredSession | None], StoredSession | None],
        records: Sequence[Record] = (),
    ) -> Change:
        sessions = self._tenants[key.tenant]
        before = sessions.get(key.session_id)
        after = decide(before)
        if after is None:
            sessions.pop(key.session_id, None)
        else:
            sessions[key.session_id] = after
        if after is not before:
            for record in records:
                self.put(key.tenant, record)
        return Change(before, after)

    async def summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        newest_first = sorted(self._tenants[tenant].values(), key=lambda stored: stored.used_s, reverse=True)
        return tuple(stored.summary for stored in newest_first if stored.summary)[: max(0, limit)]

    async def evict(self, tenant: str, max_sessions: int, now_s: float) -> int:
        sessions = self._tenants[tenant]
        surplus = len(sessions) - max_sessions
        if surplus <= 0:
            return 0
        unheld = [session_id for session_id, stored in sessions.items() if not stored.is_held(now_s)]
        unheld.sort(key=lambda session_id: sessions[session_id].used_s)
        for session_id in unheld[:surplus]:
            del sessions[session_id]
        return len(unheld[:surplus])

    async def count(self, now_s: float) -> SessionCounts:
        every = [stored for sessions in self._tenants.values() for stored in sessions.values()]
        return SessionCounts(
            sessions=sum(stored.summary is not None for stored in every),
            open_turns=sum(stored.is_held(now_s) for stored in every),
            records=self.num_records,
        )

    async def close(self) -> None:
        self._tenants.clear()
        self.clear()
