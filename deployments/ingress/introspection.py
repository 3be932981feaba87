"""What the ingress asks of the other parts to show them in `/readyz` and `/-/…`."""

from __future__ import annotations

from typing import Protocol

from deployments.types import Json


class Introspection(Protocol):
    async def engines(self) -> dict[str, Json]:
        """Statistics of each generator, by model."""
        ...

    async def cache(self) -> Json:
        """Statistics of the vision_encoder."""
        ...

    async def router(self) -> Json:
        """Statistics of the session_router."""
        ...

    async def ready(self) -> dict[str, bool | str]:
        """By part: True, or what keeps it from being ready."""
        ...
