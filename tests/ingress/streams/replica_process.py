"""An ingress replica in a process of its own over the stores in a folder: prints its address, serves until killed."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from ingress.bench import FixedParts, serving

from deployments.config import parse_config
from deployments.fakes import FakeGenerator
from deployments.images.stores.open import open_image_store
from deployments.ingress.app import create_app
from deployments.ingress.services import build_services
from deployments.ingress.streams.ownership import Pace
from deployments.ingress.streams.service import Streams
from deployments.ingress.streams.stores.open import open_stream_store
from deployments.session_router.service import open_router

PACE = Pace(beat_s=0.1, stale_s=0.5, sweep_s=0.5)
WORD_DELAY_S = 0.05


async def main(folder: str) -> None:
    config = parse_config({"models": [{"name": "fake", "family": "fake"}], "data_dir": folder})
    router, images = open_router(config), open_image_store(config.images, Path(folder))
    generators = {"fake": FakeGenerator(word_delay_s=WORD_DELAY_S)}
    services = build_services(config, router, generators, images, b"s" * 32, FixedParts({}))
    await services.streams.close()
    store = open_stream_store(config.ingress.streams, Path(folder))
    services = replace(services, streams=Streams(services.turns, config, store, pace=PACE))
    async with serving(create_app(services)) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1]))
