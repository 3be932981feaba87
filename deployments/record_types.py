"""What surfaces keep beside conversations: stored responses, files by name. Bodies are opaque to whoever keeps them.

Standard library only; crosses processes by pickle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

RecordKind = Literal["response", "conversation", "file"]


@dataclass(frozen=True, slots=True)
class Record:
    kind: RecordKind
    id: str  # unique within tenant and kind
    created_s: float  # Unix time
    body: str = field(repr=False)  # JSON text
    expires_s: float | None = None  # Unix time, gone from then on; None: kept until deleted


class RecordArchive(Protocol):
    """Records by tenant, kind and id. Records of other tenants look like records that do not exist."""

    async def put_record(self, tenant: str, record: Record) -> None:
        """Replaces one with the same id, its place in lists included. The oldest go when a tenant has too many."""
        ...

    async def record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """Raises RecordNotFound."""
        ...

    async def records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None = None, *, oldest_first: bool = False
    ) -> tuple[Record, ...]:
        """At most `limit`, newest first, those behind the one with id `after`. Raises RecordNotFound for `after`."""
        ...

    async def delete_record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """The record that is gone now. Raises RecordNotFound."""
        ...
