"""What people may see and delete of their sessions."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError

from deployments.ingress.schemas import (
    DeletedSession,
    HistoryReply,
    SessionBody,
    SessionsQuery,
    SessionsReply,
)
from deployments.ingress.services import Given
from deployments.ingress.tenants import Tenant

router = APIRouter(prefix="/chat", tags=["sessions"])

# :path, so that an id with a slash reaches the router, whose error says what an id may hold.
HISTORY_PATH = "/history/{session_id:path}"


@router.get(HISTORY_PATH)
async def get_history(session_id: str, services: Given, tenant: Tenant) -> HistoryReply:
    """The messages kept of a session."""
    messages = await services.archive.history(tenant, session_id)
    return HistoryReply.from_messages(session_id, messages)


@router.delete(HISTORY_PATH)
async def delete_history(session_id: str, services: Given, tenant: Tenant) -> DeletedSession:
    """Forget a session. A turn that is under way in it is not stored."""
    await services.archive.delete_session(tenant, session_id)
    return DeletedSession(session_id=session_id)


@router.get("/sessions")
async def list_sessions(query: Annotated[SessionsQuery, Query()], services: Given, tenant: Tenant) -> SessionsReply:
    """The sessions used last."""
    limit = _check_limit(query.limit, services.config.ingress.max_listed_sessions)
    found = await services.archive.sessions(tenant, limit + 1)  # one more, to know whether there are more
    sessions = [SessionBody.from_summary(summary) for summary in found[:limit]]
    return SessionsReply(sessions=sessions, count=len(sessions), has_more=len(found) > limit)


def _check_limit(asked: int | None, most: int) -> int:
    if asked is not None and asked > most:
        message = f"{asked} is more than {most} (ingress.max_listed_sessions)"
        raise RequestValidationError([{"loc": ("query", "limit"), "msg": message, "type": "less_than_equal"}])
    return most if asked is None else asked
