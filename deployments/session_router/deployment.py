"""The session router as a Ray Serve deployment."""

from __future__ import annotations

import os

from deployments.config import RetinaConfig
from deployments.logs import configure_logging
from deployments.record_types import Record, RecordKind
from deployments.session_router.service import open_router
from deployments.types import Json, Message, SessionSummary, Turn, TurnOutcome, TurnRequest


class SessionRouterReplica:
    def __init__(self, config: RetinaConfig) -> None:
        configure_logging()
        self._router = open_router(config)

    async def open_turn(self, request: TurnRequest) -> Turn:
        return await self._router.open_turn(request)

    async def close_turn(self, outcome: TurnOutcome) -> int:
        return await self._router.close_turn(outcome)

    async def history(self, tenant: str, session_id: str) -> tuple[Message, ...]:
        return await self._router.history(tenant, session_id)

    async def sessions(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        return await self._router.sessions(tenant, limit)

    async def delete_session(self, tenant: str, session_id: str) -> None:
        await self._router.delete_session(tenant, session_id)

    async def put_record(self, tenant: str, record: Record) -> None:
        await self._router.put_record(tenant, record)

    async def record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        return await self._router.record(tenant, kind, record_id)

    async def records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None = None, *, oldest_first: bool = False
    ) -> tuple[Record, ...]:
        return await self._router.records(tenant, kind, limit, after, oldest_first=oldest_first)

    async def delete_record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        return await self._router.delete_record(tenant, kind, record_id)

    async def statistics(self) -> Json:
        return {"pid": os.getpid(), **await self._router.statistics()}
