"""The ingress as a Ray Serve deployment: the FastAPI app of app.py over handles to the other parts."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import RetinaConfig
from deployments.handles import RayGenerator, RayParts, RaySessionRouter, RayVisionEncoder
from deployments.images.secret import open_secret
from deployments.images.stores.open import open_image_store
from deployments.ingress.app import create_app
from deployments.ingress.request_id import RequestIdFilter
from deployments.ingress.services import build_services
from deployments.logs import configure_logging


@serve.ingress()  # type: ignore[untyped-decorator,unused-ignore]
class Ingress:
    """Late-bound: the app is made in the replica, after the constructor, so that app.py needs no Ray."""

    def __init__(
        self,
        config: RetinaConfig,
        router: DeploymentHandle,
        encoder: DeploymentHandle,
        generators: dict[str, DeploymentHandle],
    ) -> None:
        configure_logging(RequestIdFilter())
        self._config = config
        self._router = RaySessionRouter(router, config.session_router.lease_wait_s)
        self._encoder = RayVisionEncoder(encoder)
        self._generators = {model: RayGenerator(handle, model) for model, handle in generators.items()}

    def __serve_build_asgi_app__(self) -> FastAPI:
        data_dir = Path(self._config.data_dir)
        services = build_services(
            self._config,
            self._router,
            self._generators,
            open_image_store(self._config.images, data_dir),
            open_secret(data_dir),
            RayParts(self._router, self._encoder, self._generators),
        )
        return create_app(services)
