"""A name for how a model is served: clients compare it to know whether a seed still gives the same answer."""

from __future__ import annotations

import hashlib

from deployments.config import RetinaConfig
from deployments.ingress.version import retina_version

NUM_DIGITS = 10


def fingerprint_of(config: RetinaConfig, name: str) -> str:
    """Of the model's configuration and Retina's version; the same on all replicas."""
    model = next(model for model in config.models if model.name == name)
    settings = model.model_dump_json(exclude={"name", "prices", "generator"})
    text = f"{settings}\n{config.generator_of(name).model_dump_json()}\n{config.device}\n{retina_version()}"
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:NUM_DIGITS]}"
