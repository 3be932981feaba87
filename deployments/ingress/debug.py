"""Is it alive, is it ready, and what is it doing: read-only looks into the running graph."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Response

from deployments.ingress.schemas import HealthReply, ReadyReply
from deployments.ingress.services import Given
from deployments.types import Json

router = APIRouter(tags=["introspection"])


@router.get("/healthz")
async def health() -> HealthReply:
    """This process serves."""
    return HealthReply()


@router.get("/readyz", responses={503: {"model": ReadyReply}})
async def readiness(response: Response, services: Given) -> ReadyReply:
    """All parts can work; 503 until then."""
    parts = await services.parts.ready()
    ready = all(state is True for state in parts.values())
    response.status_code = 200 if ready else 503
    return ReadyReply(ready=ready, parts=parts)


@router.get("/-/config")
async def config(services: Given) -> dict[str, Any]:
    """The configuration as resolved, defaults filled in. It holds no secrets."""
    return services.config.model_dump(mode="json")


@router.get("/-/engine")
async def engines(services: Given) -> dict[str, Json]:
    """Each model's generator: waiting, running, slots, recent plans."""
    return await services.parts.engines()


@router.get("/-/cache")
async def cache(services: Given) -> Json:
    """The vision_encoder and its caches."""
    return await services.parts.cache()


@router.get("/-/session_router")
async def session_router(services: Given) -> Json:
    """The session_router: sessions and leases."""
    return await services.parts.router()


@router.get("/-/ingress")
async def ingress(services: Given) -> Json:
    """This ingress replica: open turns, tasks and completions, kept streams, sockets, pictures, requests by outcome,
    cancelled ones by stage.
    """
    return {
        "pid": os.getpid(),
        "waiting_pictures": services.pictures.num_waiting,
        "open_sockets": services.sockets.count,
        "streams": await services.streams.statistics(),
        **services.tasks.statistics(),
        **services.completions.statistics(),
        **services.turns.statistics(),
    }
