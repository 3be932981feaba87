"""Records in the memory of one process: the part of the memory store that is no session."""

from __future__ import annotations

from collections import defaultdict

from deployments.record_types import Record, RecordKind
from deployments.session_router.stores import RecordKey


class MemoryRecords:
    """RecordStore. Used by one event loop. Nothing here awaits, so every method is atomic."""

    def __init__(self) -> None:
        # By tenant and kind, then by id in order of storing.
        self._records: defaultdict[tuple[str, RecordKind], dict[str, Record]] = defaultdict(dict)

    @property
    def num_records(self) -> int:
        return sum(map(len, self._records.values()))

    def put(self, tenant: str, record: Record) -> None:
        records = self._records[tenant, record.kind]
        records.pop(record.id, None)
        records[record.id] = record

    def clear(self) -> None:
        self._records.clear()

    async def put_record(self, tenant: str, record: Record) -> None:
        self.put(tenant, record)

    async def read_record(self, key: RecordKey, now_s: float) -> Record | None:
        record = self._records[key.tenant, key.kind].get(key.record_id)
        return None if record is None or _is_past(record, now_s) else record

    async def list_records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None, *, oldest_first: bool, now_s: float
    ) -> tuple[Record, ...] | None:
        listed = [record for record in self._by_age(tenant, kind) if not _is_past(record, now_s)]
        if not oldest_first:
            listed.reverse()
        if after is not None:
            ids = [record.id for record in listed]
            if after not in ids:
                return None
            listed = listed[ids.index(after) + 1 :]
        return tuple(listed[: max(0, limit)])

    async def delete_record(self, key: RecordKey, now_s: float) -> Record | None:
        record = self._records[key.tenant, key.kind].pop(key.record_id, None)
        return None if record is None or _is_past(record, now_s) else record

    async def trim_records(self, tenant: str, kind: RecordKind, max_records: int, now_s: float) -> int:
        before = self.num_records
        for records in self._records.values():
            for record in list(records.values()):
                if _is_past(record, now_s):
                    del records[record.id]
        by_age = self._by_age(tenant, kind)
        for record in by_age[: max(0, len(by_age) - max_records)]:
            del self._records[tenant, kind][record.id]
        return before - self.num_records

    def _by_age(self, tenant: str, kind: RecordKind) -> list[Record]:
        """Oldest first; sorting is stable."""
        return sorted(self._records[tenant, kind].values(), key=lambda record: record.created_s)


def _is_past(record: Record, now_s: float) -> bool:
    return record.expires_s is not None and record.expires_s <= now_s
