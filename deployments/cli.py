"""The `retina` command: chat in the terminal, serve and check a config, demonstrations.

Exit codes: 0 done, 1 the request or the start failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import sys

import typer

from deployments.commands.chat import chat
from deployments.commands.config import check, settings
from deployments.commands.demo import demo
from deployments.commands.serve import serve
from deployments.commands.terminal import show_error
from deployments.errors import RetinaError
from deployments.training.command import train_projector

app = typer.Typer(help="Retina: vision-language chat.", no_args_is_help=True, pretty_exceptions_enable=False)
for command in (chat, serve, check, settings, train_projector):
    app.command()(command)
app.add_typer(demo, name="demo")


def main() -> None:
    """Entry point: a RetinaError becomes one line on stderr and exit code 1."""
    try:
        app()
    except RetinaError as error:
        show_error(error)
        sys.exit(1)
