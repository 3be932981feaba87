"""The HTTP surface put together: routes, error shapes, and the two layers in front of them. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI

from deployments.ingress import (
    chat,
    debug,
    history,
    image_routes,
    page,
    reference,
    rendering,
    stream_routes,
    vision,
    websocket,
)
from deployments.ingress.body_limit import BodyLimit
from deployments.ingress.error_replies import install_error_replies
from deployments.ingress.openai import chat_completions, files, models
from deployments.ingress.openapi_document import DocumentedApp
from deployments.ingress.request_scope import RequestScope
from deployments.ingress.responses import conversations
from deployments.ingress.responses import routes as responses
from deployments.ingress.schemas import ErrorReply
from deployments.ingress.services import Services
from deployments.ingress.version import retina_version

ROUTES = (
    chat,
    stream_routes,
    chat_completions,
    responses,
    conversations,
    models,
    files,
    vision,
    history,
    image_routes,
    debug,
    page,
    rendering,
    reference,
    websocket,
)


def create_app(services: Services) -> FastAPI:
    """The app over these parts, which it drains at its end."""
    app = _with_routes()
    app.state.services = services
    install_error_replies(app)
    app.add_middleware(BodyLimit, max_body_bytes=services.config.ingress.max_body_bytes)
    app.add_middleware(RequestScope, metrics=services.turns.metrics)  # added last, it is outermost
    return app


def openapi_document() -> Mapping[str, Any]:
    """What GET /openapi.json answers, without any part."""
    return _with_routes().openapi()


def _with_routes() -> FastAPI:
    app = DocumentedApp(
        title="Retina",
        description="Chat about pictures with vision-language models.",
        version=retina_version(),
        docs_url=None,  # FastAPI's own pages load scripts from a content network; `reference.py` has ours
        redoc_url=None,
        lifespan=_lifespan,
        responses={"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}},
    )
    for routes in ROUTES:
        app.include_router(routes.router)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.streams.start()
    yield
    await services.drain()
