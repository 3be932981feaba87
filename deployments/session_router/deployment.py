"""The session router as a Ray Serve deployment."""

from __future__ import annotations

import os

from deployments.config import RetinaConfig
from deployments.logs import configure_logging
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

    async def statistics(self) -> Json:
        return {"pid": os.getpid(), **await self._router.statistics()}
