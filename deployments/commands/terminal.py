"""What the commands share: where they write what is not their output, and the option that names a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments.errors import RetinaError

errors = Console(stderr=True, highlight=False)
ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="A Serve config whose args are Retina's.")]
DEFAULT_CONFIG = Path("configs/local.yaml")


def show_error(error: RetinaError) -> None:
    """One line on stderr."""
    errors.print(f"[red]{error.code}[/red]", end=": ")
    errors.print(error.message, markup=False, soft_wrap=True)
