"""What a session store must do: keep sessions, change one at a time, at once or not at all; keep records beside them.

A store knows nothing of messages, turns or limits; of a session it keeps bytes, a summary for lists, and a lease.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.record_types import Record, RecordKind
from deployments.types import SessionSummary


@dataclass(frozen=True, slots=True)
class SessionKey:
    tenant: str
    session_id: str


@dataclass(frozen=True, slots=True)
class RecordKey:
    tenant: str
    kind: RecordKind
    record_id: str


@dataclass(frozen=True, slots=True)
class Lease:
    token: str  # of the turn that holds the session
    until_s: float  # Unix time; from then on another turn may take it


@dataclass(frozen=True, slots=True)
class StoredSession:
    used_s: float  # Unix time of the last commit; before the first one, of its opening
    conversation: bytes = b""  # opaque to stores
    summary: SessionSummary | None = None  # None until a turn is committed: nobody sees the session before
    lease: Lease | None = None

    def is_held(self, now_s: float) -> bool:
        return self.lease is not None and now_s < self.lease.until_s

    def has_lease(self, token: str) -> bool:
        return self.lease is not None and self.lease.token == token


@dataclass(frozen=True, slots=True)
class Change:
    before: StoredSession | None
    after: StoredSession | None


@dataclass(frozen=True, slots=True)
class SessionCounts:
    sessions: int  # with at least one committed turn
    open_turns: int  # with a lease that is not past its time
    records: int = 0  # those past their time that are not removed yet included


class RecordStore(Protocol):
    """Records by tenant, kind and id, in order of creation, equal ones in order of storing.

    Whatever `expires_s` says is past at `now_s` looks absent. All methods raise PartUnavailable.
    """

    async def put_record(self, tenant: str, record: Record) -> None:
        """Replaces one with the same id, and then counts as stored last."""
        ...

    async def read_record(self, key: RecordKey, now_s: float) -> Record | None: ...

    async def list_records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None, *, oldest_first: bool, now_s: float
    ) -> tuple[Record, ...] | None:
        """At most `limit` (below 0 is as 0) behind the one with id `after`; None when there is no such one."""
        ...

    async def delete_record(self, key: RecordKey, now_s: float) -> Record | None:
        """What was there."""
        ...

    async def trim_records(self, tenant: str, kind: RecordKind, max_records: int, now_s: float) -> int:
        """Remove everybody's that are past their time, then the tenant's oldest until `max_records` are left.

        Returns how many went.
        """
        ...


class SessionStore(RecordStore, Protocol):
    """Methods may be cancelled; the change then happens wholly or not at all. All raise PartUnavailable."""

    kind: str
    is_shared: bool  # other processes may change it: waiting for a lease needs polling

    async def read(self, key: SessionKey) -> StoredSession | None: ...

    async def update(
        self,
        key: SessionKey,
        decide: Callable[[StoredSession | None], StoredSession | None],
        records: Sequence[Record] = (),
    ) -> Change:
        """Replace the session by what `decide` makes of it: None deletes it, the same object leaves it alone.

        The records are put together with a change; where the session is left alone they are not.

        Nobody else changes the session meanwhile. `decide` may run in another thread and more than once; what it
        raises is raised here, and nothing is stored.
        """
        ...

    async def summaries(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        """Of sessions with a committed turn, last used first, at most `limit`; below 0 is as 0."""
        ...

    async def evict(self, tenant: str, max_sessions: int, now_s: float) -> int:
        """Delete the longest unused until `max_sessions` are left, none with a lease; returns how many went."""
        ...

    async def count(self, now_s: float) -> SessionCounts: ...

    async def close(self) -> None:
        """Closing again does nothing."""
        ...
