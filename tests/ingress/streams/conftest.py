"""One world for the replicas of a test, over each kind of stream store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from ingress.streams.stream_bench import World

from deployments.config import parse_config
from deployments.images.stores.open import open_image_store
from deployments.ingress.streams.stores.open import open_stream_store
from deployments.session_router.service import open_router

BuildWorld = Callable[..., World]


@pytest.fixture(params=["memory", "disk"])
def store_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def build_world(tmp_path: Path, store_kind: str) -> AsyncIterator[BuildWorld]:
    async with contextlib.AsyncExitStack() as stack:

        def build(ingress: dict[str, object] | None = None, **streams: object) -> World:
            config = parse_config(
                {
                    "models": [{"name": "fake", "family": "fake"}],
                    "data_dir": str(tmp_path),
                    "images": {"store": "memory"},
                    "session_router": {"store": "memory"},
                    "ingress": {"streams": {"store": store_kind, **streams}, **(ingress or {})},
                }
            )
            router = open_router(config)
            store = open_stream_store(config.ingress.streams, tmp_path)
            world = World(config, router, open_image_store(config.images, tmp_path), store)
            stack.push_async_callback(router.close)
            stack.push_async_callback(store.close)
            stack.push_async_callback(_drain, world)
            return world

        yield build


async def _drain(world: World) -> None:
    for cable in world.cables:
        cable.join()
    for replica in world.replicas:
        await replica.streams.drain()
        await replica.turns.drain()


@pytest.fixture
def world(build_world: BuildWorld) -> World:
    return build_world()
