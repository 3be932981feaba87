"""`retina check`, `settings` and `openapi`: what a config says, what it may say, and what the routes take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from deployments.config import read_config


def check(config: Annotated[Path, typer.Argument(help="A Serve config whose args are Retina's.")]) -> None:
    """Read a config without loading anything.

    Prints the settings with all defaults, the models and where their checkpoints are, the deployments with their
    replicas and shares of CPUs and GPUs, and what caches and stores may grow to. Exit code 1 for unknown keys, values
    out of range, and a checkpoint that is not there or is of another family.
    """
    from deployments.capacity import capacity_table
    from deployments.commands.config_report import models_table, serving_table, sizes_table

    parsed = read_config(config)
    models = models_table(parsed)  # what is wrong is said before pages of settings
    print(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), end="")
    print("models:")
    print(models)
    print("deployments, minimum replicas:")
    print(capacity_table(parsed))
    print("at most:")
    print(sizes_table(parsed))
    print("serving:")
    print(serving_table(parsed))


def settings() -> None:
    """Print every configuration key with its default, its limits and its meaning, as Markdown."""
    from deployments.settings_table import settings_page

    print(settings_page(), end="")


def openapi(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/api.md, instead of JSON.")] = False,
) -> None:
    """Print the OpenAPI document of the service's routes, without starting anything."""
    from deployments.api_page import api_page
    from deployments.ingress.app import openapi_document

    document = openapi_document()
    print(api_page(document) if markdown else json.dumps(document, indent=2, ensure_ascii=False) + "\n", end="")
