"""The HTTP surface put together: routes, error shapes, and the two layers in front of them. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import AsyncIterator

from fastapi import FastAPI

from deployments.config import RetinaConfig
from deployments.ingress import chat, debug, history, image_routes, page, vision
from deployments.ingress.body_limit import BodyLimit
from deployments.ingress.error_replies import install_error_replies
from deployments.ingress.introspection import Introspection
from deployments.ingress.pictures import PictureIntake
from deployments.ingress.request_scope import RequestScope
from deployments.ingress.schemas import ErrorReply
from deployments.ingress.services import Services
from deployments.ingress.tasks import Tasks
from deployments.ingress.turns import Turns
from deployments.types import ImageStore, SessionArchive


def create_app(
    config: RetinaConfig,
    turns: Turns,
    tasks: Tasks,
    archive: SessionArchive,
    images: ImageStore,
    secret: bytes,
    parts: Introspection,
) -> FastAPI:
    """The app over these parts, which stay the caller's to close."""
    pictures = PictureIntake(images, config, secret)
    app = FastAPI(
        title="Retina",
        description="Chat about pictures with vision-language models.",
        version=_version(),
        lifespan=_lifespan,
        responses={"4XX": {"model": ErrorReply}, "5XX": {"model": ErrorReply}},
    )
    app.state.services = Services(config, turns, tasks, archive, pictures, parts)
    for routes in (chat, vision, history, image_routes, debug, page):
        app.include_router(routes.router)
    install_error_replies(app)
    app.add_middleware(BodyLimit, max_body_bytes=config.ingress.max_body_bytes)
    app.add_middleware(RequestScope, metrics=turns.metrics)  # added last, it is outermost
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    yield
    await services.turns.drain()
    await services.tasks.drain()
    await services.pictures.drain()
    services.pictures.close()


def _version() -> str:
    try:
        return importlib.metadata.version("retina-serve")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"  # run from the source tree without being installed
