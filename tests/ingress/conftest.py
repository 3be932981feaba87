"""The ingress over the real router and image store, in memory, and fake generators."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import httpx
import pytest
from ingress.bench import Bench, BuildBench, FixedParts

from deployments.config import parse_config
from deployments.fakes import FakeGenerator
from deployments.images.stores.open import open_image_store
from deployments.ingress.app import create_app
from deployments.ingress.tasks import Tasks
from deployments.ingress.turns import Turns
from deployments.metrics import Metrics
from deployments.session_router.service import Router, open_router
from deployments.types import Generator, SessionRouter

SECRET = b"s" * 32


@pytest.fixture
async def build_bench(tmp_path: Path) -> AsyncIterator[BuildBench]:
    async with contextlib.AsyncExitStack() as stack:

        def build(
            generator: Generator | None = None,
            wrap_router: Callable[[Router], SessionRouter] | None = None,
            metrics: Metrics | None = None,
            **sections: Mapping[str, object],  # of the config; `models`, a list, replaces the two that stand here
        ) -> Bench:
            in_memory = {name: {"store": "memory", **sections.pop(name, {})} for name in ("images", "session_router")}
            models = [{"name": "fake", "family": "fake"}, {"name": "other", "family": "fake"}]
            config = parse_config({"models": models, "data_dir": str(tmp_path), **in_memory} | sections)
            router = open_router(config)
            generators = {"fake": generator or FakeGenerator(), "other": FakeGenerator("other")}
            images = open_image_store(config.images, tmp_path)
            turns = Turns(wrap_router(router) if wrap_router else router, generators, images, config, metrics)
            tasks = Tasks(generators, config, turns.metrics)
            parts = FixedParts({"session_router": True, "generator-fake": True})
            app = create_app(config, turns, tasks, router, images, SECRET, parts)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://retina")
            stack.push_async_callback(router.close)
            stack.push_async_callback(turns.drain)
            stack.push_async_callback(tasks.drain)
            stack.push_async_callback(client.aclose)
            stack.callback(app.state.services.pictures.close)
            return Bench(config, router, images, turns, tasks, parts, app, client)

        yield build


@pytest.fixture
def bench(build_bench: BuildBench) -> Bench:
    return build_bench()
