"""What the routes work with, handed to them by create_app."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from deployments.config import RetinaConfig
from deployments.ingress.introspection import Introspection
from deployments.ingress.pictures import PictureIntake
from deployments.ingress.tasks import Tasks
from deployments.ingress.turns import Turns
from deployments.types import SessionArchive


@dataclass(frozen=True, slots=True)
class Services:
    config: RetinaConfig
    turns: Turns
    tasks: Tasks
    archive: SessionArchive
    pictures: PictureIntake
    parts: Introspection


async def services_of_app(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Given = Annotated[Services, Depends(services_of_app)]
