"""Which families there are, which model types each of them reads, and where their code is."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import CheckpointError, ConfigError
from deployments.models.weights import read_json

if TYPE_CHECKING:
    from deployments.models.family import Family


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    module: str  # holds FAMILY; imported on first use, it pulls in torch
    model_types: tuple[str, ...]  # of config.json


FAMILIES: Mapping[str, FamilyEntry] = {
    "smolvlm": FamilyEntry("deployments.models.smolvlm", ("idefics3", "smolvlm")),
}


def open_family(name: str) -> Family:
    """The family of that name. Raises ConfigError naming the choices."""
    if name not in FAMILIES:
        raise ConfigError(f"unknown family {name!r}; there is {', '.join(FAMILIES)}", param="family")
    family: Family = importlib.import_module(FAMILIES[name].module).FAMILY
    return family


def check_model_type(name: str, folder: Path) -> str:
    """The checkpoint's model type. Raises CheckpointError when the family does not read it."""
    model_type = read_json(folder, "config.json").get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES[name].model_types:
        return model_type
    readers = "; ".join(f"{family} reads {', '.join(entry.model_types)}" for family, entry in FAMILIES.items())
    raise CheckpointError(
        f"checkpoint {folder} has model_type {model_type!r}, which family {name!r} does not read: {readers}",
        param="family",
    )
