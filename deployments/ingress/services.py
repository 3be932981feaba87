"""What the routes work with: the ingress's own parts, made from the other parts of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import HTTPConnection

from deployments.config import RetinaConfig
from deployments.ingress.completions import Completions
from deployments.ingress.introspection import Introspection
from deployments.ingress.open_sockets import OpenSockets
from deployments.ingress.pictures import PictureIntake
from deployments.ingress.responses.record import complete_record
from deployments.ingress.streams.service import Streams
from deployments.ingress.streams.stores.open import open_stream_store
from deployments.ingress.tasks import Tasks
from deployments.ingress.turns import Turns
from deployments.metrics import Metrics
from deployments.record_types import RecordArchive
from deployments.types import Generator, ImageStore, SessionArchive, SessionRouter


class Sessions(SessionRouter, SessionArchive, RecordArchive, Protocol):
    """All that the ingress asks of the session_router."""


@dataclass(frozen=True, slots=True)
class Services:
    """One ingress replica's. Belongs to one event loop."""

    config: RetinaConfig
    turns: Turns
    tasks: Tasks
    completions: Completions
    streams: Streams
    archive: SessionArchive
    records: RecordArchive
    pictures: PictureIntake
    parts: Introspection
    sockets: OpenSockets = field(default_factory=OpenSockets)

    async def drain(self) -> None:
        """Wait for what goes on without its clients, and close what is this object's own."""
        for part in (self.streams, self.turns, self.tasks, self.completions, self.pictures):
            await part.drain()
        self.pictures.close()
        await self.streams.close()


def build_services(
    config: RetinaConfig,
    router: Sessions,
    generators: Mapping[str, Generator],
    images: ImageStore,
    secret: bytes,
    parts: Introspection,
    metrics: Metrics | None = None,
) -> Services:
    """Over parts that stay the caller's to close."""
    metrics = metrics or Metrics()
    turns = Turns(router, generators, images, config, metrics, complete_record)
    return Services(
        config=config,
        turns=turns,
        tasks=Tasks(generators, config, metrics),
        completions=Completions(generators, config, secret, metrics),
        streams=Streams(turns, config, open_stream_store(config.ingress.streams, Path(config.data_dir))),
        archive=router,
        records=router,
        pictures=PictureIntake(images, config, secret),
        parts=parts,
    )


async def services_of_app(connection: HTTPConnection) -> Services:
    services = connection.app.state.services
    assert isinstance(services, Services)
    return services


Given = Annotated[Services, Depends(services_of_app)]
