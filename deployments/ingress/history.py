"""What people may see and delete of their sessions."""

from __future__ import annotations

from fastapi import APIRouter

from deployments.ingress.schemas import DeletedSession, HistoryMessage, HistoryReply, SessionBody, SessionsReply
from deployments.ingress.services import Given
from deployments.ingress.tenants import Tenant

router = APIRouter(prefix="/chat", tags=["sessions"])

# :path, so that an id with a slash reaches the router, whose error says what an id may hold.
HISTORY_PATH = "/history/{session_id:path}"


@router.get(HISTORY_PATH)
async def get_history(session_id: str, services: Given, tenant: Tenant) -> HistoryReply:
    """The messages kept of a session."""
    messages = await services.archive.history(tenant, session_id)
    history = [HistoryMessage.from_message(message) for message in messages]
    return HistoryReply(session_id=session_id, history=history, length=len(history))


@router.delete(HISTORY_PATH)
async def delete_history(session_id: str, services: Given, tenant: Tenant) -> DeletedSession:
    """Forget a session. A turn that is under way in it is not stored."""
    await services.archive.delete_session(tenant, session_id)
    return DeletedSession(session_id=session_id)


@router.get("/sessions")
async def list_sessions(services: Given, tenant: Tenant) -> SessionsReply:
    """All sessions."""
    sessions = [SessionBody.from_summary(summary) for summary in await services.archive.sessions(tenant)]
    return SessionsReply(sessions=sessions, count=len(sessions))
