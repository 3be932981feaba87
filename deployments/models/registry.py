"""Opens families by name, and says which model types each of them reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import CheckpointError, ConfigError
from deployments.families import FAMILIES
from deployments.models.weights import read_json

if TYPE_CHECKING:
    from deployments.models.family import Family


def open_family(name: str) -> Family:
    """The family of that name. Raises ConfigError naming the choices."""
    if name not in FAMILIES or not FAMILIES[name].module:
        readable = [family for family, entry in FAMILIES.items() if entry.module]
        raise ConfigError(f"unknown family {name!r}; there is {', '.join(readable)}", param="family")
    family: Family = importlib.import_module(FAMILIES[name].module).FAMILY
    return family


def check_model_type(name: str, folder: Path) -> str:
    """The checkpoint's model type. Raises CheckpointError when the family does not read it."""
    model_type = read_json(folder, "config.json").get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES[name].model_types:
        return model_type
    readers = "; ".join(
        f"{family} reads {', '.join(entry.model_types)}" for family, entry in FAMILIES.items() if entry.module
    )
    raise CheckpointError(
        f"checkpoint {folder} has model_type {model_type!r}, which family {name!r} does not read: {readers}",
        param="family",
    )
