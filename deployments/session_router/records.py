"""What surfaces keep beside sessions, by tenant, kind and id: looked up, listed in pages, bounded in number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from deployments.errors import PartUnavailable, RecordNotFound
from deployments.record_types import Record, RecordKind
from deployments.session_router.stores import RecordKey, RecordStore
from deployments.session_router.uninterrupted import Uninterrupted

logger = logging.getLogger(__name__)


class Records:
    """Looks the clock up and refuses; the store keeps."""

    def __init__(
        self,
        store: RecordStore,
        max_records: int,  # per tenant and kind
        clock: Callable[[], float],  # Unix time in seconds
        uninterrupted: Uninterrupted,
    ) -> None:
        self._store = store
        self._max_records = max_records
        self._clock = clock
        self._uninterrupted = uninterrupted

    async def put(self, tenant: str, record: Record) -> None:
        await self._uninterrupted.run(self._put(tenant, record))

    async def get(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """Raises RecordNotFound."""
        found = await self._store.read_record(RecordKey(tenant, kind, record_id), self._clock())
        return _found(found, kind, record_id)

    async def list(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None, *, oldest_first: bool
    ) -> tuple[Record, ...]:
        """Raises RecordNotFound for `after`."""
        page = await self._store.list_records(
            tenant, kind, limit, after, oldest_first=oldest_first, now_s=self._clock()
        )
        if page is None:
            raise _not_found(kind, after or "")
        return page

    async def delete(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        """Raises RecordNotFound."""
        key = RecordKey(tenant, kind, record_id)
        deleted = await self._uninterrupted.run(self._store.delete_record(key, self._clock()))
        return _found(deleted, kind, record_id)

    async def trim(self, tenant: str, kinds: Iterable[RecordKind]) -> None:
        """After records of these kinds were stored. A failure is logged: it does not undo what was stored."""
        try:
            for kind in kinds:
                await self._store.trim_records(tenant, kind, self._max_records, self._clock())
        except PartUnavailable as error:
            logger.warning("more records than allowed may be kept until the next one is stored: %s", error)

    async def _put(self, tenant: str, record: Record) -> None:
        await self._store.put_record(tenant, record)
        await self.trim(tenant, (record.kind,))


def _found(record: Record | None, kind: RecordKind, record_id: str) -> Record:
    if record is None:
        raise _not_found(kind, record_id)
    return record


def _not_found(kind: RecordKind, record_id: str) -> RecordNotFound:
    return RecordNotFound(f"there is no {kind} {record_id!r}", f"{kind}_id")
