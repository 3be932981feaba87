"""The same graph in one process without Ray: `async with open_graph(config) as graph`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from deployments.capacity import resolve_paths
from deployments.config import RetinaConfig
from deployments.generator.open import open_generator
from deployments.images.check import check_image
from deployments.images.secret import open_secret, tenant_secret
from deployments.images.stores.open import open_image_store
from deployments.ingress.app import create_app
from deployments.ingress.services import Services, build_services
from deployments.ingress.tasks import Tasks
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import TurnEvent, TurnInput, Turns
from deployments.session_router.service import Router, open_router
from deployments.types import Generator, ImageRef, ImageStore, Json, VisionEncoder
from deployments.vision_encoder.open import open_vision_encoder


@dataclass(frozen=True, slots=True)
class LocalParts:
    """What `/-/…` and `/readyz` ask of parts in the same process."""

    router_service: Router
    encoder: VisionEncoder
    generators: Mapping[str, Generator]

    async def engines(self) -> dict[str, Json]:
        return {model: await generator.statistics() for model, generator in self.generators.items()}

    async def cache(self) -> Json:
        return await self.encoder.statistics()

    async def router(self) -> Json:
        return await self.router_service.statistics()

    async def ready(self) -> dict[str, bool | str]:
        """What is constructed is ready: there is no other process that could be gone."""
        names = ["session_router", "vision_encoder", *(f"generator-{model}" for model in self.generators)]
        return dict.fromkeys(names, True)


@dataclass(frozen=True, slots=True)
class Graph:
    services: Services
    router: Router
    images: ImageStore
    secret: bytes
    parts: LocalParts
    tenant: str = PUBLIC_TENANT

    @property
    def config(self) -> RetinaConfig:
        return self.services.config

    @property
    def turns(self) -> Turns:
        return self.services.turns

    @property
    def tasks(self) -> Tasks:
        return self.services.tasks

    async def add_image(self, data: bytes) -> ImageRef:
        """Check and store the bytes of a picture. Raises InvalidImage, UnsupportedImage, ImageTooLarge."""
        key = tenant_secret(self.secret, self.tenant)
        image = await asyncio.to_thread(check_image, data, self.config.images, key)
        await self.images.put(self.tenant, image)
        return image.ref

    def stream(self, turn: TurnInput) -> AsyncGenerator[TurnEvent, None]:
        return self.turns.stream(turn)

    def app(self) -> FastAPI:
        """The HTTP surface over this graph, for uvicorn."""
        return create_app(self.services)


@contextlib.asynccontextmanager
async def open_graph(config: RetinaConfig) -> AsyncIterator[Graph]:
    """All parts of the config, loaded; closed at the end of the block. Raises StartupError."""
    config = resolve_paths(config)
    data_dir = Path(config.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        images = open_image_store(config.images, data_dir)
        _close_at_end(stack, images)
        router = open_router(config)
        _close_at_end(stack, router)
        encoder = await asyncio.to_thread(open_vision_encoder, config, images)
        _close_at_end(stack, encoder)
        generators: dict[str, Generator] = {}
        for model in config.models:
            generators[model.name] = await asyncio.to_thread(open_generator, config, model.name, encoder)
            _close_at_end(stack, generators[model.name])
        secret = open_secret(data_dir)
        parts = LocalParts(router, encoder, generators)
        services = build_services(config, router, generators, images, secret, parts)
        stack.push_async_callback(services.drain)
        yield Graph(services, router, images, secret, parts)


def _close_at_end(stack: contextlib.AsyncExitStack, part: object) -> None:
    """Parts that hold threads or files have close(), plain or async; fakes and memory stores have none."""
    close = getattr(part, "close", None)
    if close is None:
        return

    async def run() -> None:
        result = close()
        if inspect.isawaitable(result):
            await result

    stack.push_async_callback(run)
