"""`retina check` and `retina settings`: what a config says and what it may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from deployments.config import read_config


def check(config: Annotated[Path, typer.Argument(help="A Serve config whose args are Retina's.")]) -> None:
    """Read a config without loading anything: resolved settings, replicas and what they ask of the cluster."""
    from deployments.capacity import capacity_table

    parsed = read_config(config)
    print(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), end="")
    print("deployments, minimum replicas:")
    print(capacity_table(parsed))


def settings() -> None:
    """Print every configuration key with its default, its limits and its meaning, as Markdown."""
    from deployments.settings_table import settings_page

    print(settings_page(), end="")
