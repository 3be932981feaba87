"""Ingress replicas over one set of stores, each of which can be cut off from everybody."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingress.bench import Bench, BuildBench, FixedParts
from ingress.streams.faults import Behind, Cable

from deployments.fakes import FakeGenerator
from deployments.ingress.app import create_app
from deployments.ingress.services import Services, build_services
from deployments.ingress.streams.ownership import Pace
from deployments.ingress.streams.service import Streams
from deployments.ingress.streams.stores.open import open_stream_store
from deployments.types import Generator

QUICK = Pace(beat_s=0.01, stale_s=0.1, sweep_s=0.02, first_look_s=0.001, longest_look_s=0.005)
SECRET = b"s" * 32


@dataclass(slots=True)
class Replica:
    services: Services
    client: httpx.AsyncClient
    cable: Cable = field(default_factory=Cable)  # to the session_router and the store of streams


AddReplica = Callable[..., Replica]  # generator


@pytest.fixture
async def add_replica(build_bench: BuildBench) -> AsyncIterator[AddReplica]:
    bench: Bench = build_bench(ingress={"streams": {"store": "disk"}})
    async with contextlib.AsyncExitStack() as stack:
        store = open_stream_store(bench.config.ingress.streams, Path(bench.config.data_dir))
        stack.push_async_callback(store.close)

        def add(generator: Generator | None = None) -> Replica:
            cable = Cable()
            router: Any = Behind(bench.router, cable)
            generators = {"fake": generator or FakeGenerator(), "other": FakeGenerator("other")}
            services = build_services(bench.config, router, generators, bench.images, SECRET, FixedParts({}))
            streams = Streams(services.turns, bench.config, Behind(store, cable), pace=QUICK)  # type: ignore[arg-type]
            services = replace(services, streams=streams)
            client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(services)), base_url="http://retina")
            stack.push_async_callback(streams.drain)
            stack.push_async_callback(client.aclose)
            stack.callback(cable.join)
            return Replica(services, client, cable)

        yield add
