"""One model's generator as a Ray Serve deployment, named generator-<model>."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator

from ray.serve.handle import DeploymentHandle

from deployments.config import RetinaConfig
from deployments.errors import PartUnavailable
from deployments.generator.open import open_generator
from deployments.handles import RayVisionEncoder
from deployments.logs import configure_logging
from deployments.types import Chunk, GenerateRequest, Json


class GeneratorReplica:
    async def __init__(self, config: RetinaConfig, model: str, encoder: DeploymentHandle) -> None:  # type: ignore[misc]
        """Serve awaits this. In a thread: the loop that waits here is the one by which Serve reaches the replica."""
        configure_logging()
        self._generator = await asyncio.to_thread(open_generator, config, model, RayVisionEncoder(encoder))

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async with contextlib.aclosing(self._generator.stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def statistics(self) -> Json:
        return {"pid": os.getpid(), **await self._generator.statistics()}

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: an engine whose thread has ended answers nobody."""
        reason = (await self._generator.statistics()).get("closing")
        if reason is not None:
            raise PartUnavailable(str(reason))
