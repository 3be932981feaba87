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
from deployments.ingress.services import build_services
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
            in_memory["ingress"] = {"streams": {"store": "memory"}, **sections.pop("ingress", {})}
            models = [{"name": "fake", "family": "fake"}, {"name": "other", "family": "fake"}]
            config = parse_config({"models": models, "data_dir": str(tmp_path), **in_memory} | sections)
            router = open_router(config)
            generators = {"fake": generator or FakeGenerator(), "other": FakeGenerator("other")}
            images = open_image_store(config.images, tmp_path)
            parts = FixedParts({"session_router": True, "generator-fake": True})
            sessions = wrap_router(router) if wrap_router else router
            services = build_services(config, sessions, generators, images, SECRET, parts, metrics)
            app = create_app(services)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://retina")
            stack.push_async_callback(router.close)
            stack.push_async_callback(services.drain)
            stack.push_async_callback(client.aclose)
            return Bench(config, router, images, services.turns, services.tasks, parts, app, client, services)

        yield build


@pytest.fixture
def bench(build_bench: BuildBench) -> Bench:
    return build_bench()
