"""What the commands share: consoles, exit codes, options, and words that are fit for a terminal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deployments.errors import InvalidRequest, RetinaError

# Both look at NO_COLOR and at whether they are terminals.
output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DEFAULT_CONFIG = Path("configs/local.yaml")
SERVER_VARIABLE = "RETINA_SERVER"

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="A Serve config whose args are Retina's.")]
ConfigInstead = Annotated[
    Path | None,
    typer.Option("--config", "-c", help=f"Without a server: whose models answer; {DEFAULT_CONFIG} if none is named."),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        envvar=SERVER_VARIABLE,
        metavar="URL",
        help="A service that runs already, http://127.0.0.1:8000; without one the models answer in this process.",
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="One of the configured models.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Of an answer; the model's default.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=2, help="0, the default, takes the likeliest token.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Makes answers with a temperature repeatable.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout, one line an answer.")]
TimingsFlag = Annotated[bool, typer.Option("--timings", help="After each answer, on stderr: times and tokens.")]


class Exit(IntEnum):
    """What `retina` ends with."""

    DONE = 0
    FAILED = 1  # a request or the start; the reason is on stderr
    USAGE = 2
    SOME_FAILED = 3  # of many items or requests
    INTERRUPTED = 130  # by Ctrl-C


EXIT_CODES = (
    "Exit codes: 0 done; 1 the request or the start failed, the reason is on stderr; 2 wrong usage; 3 some of many "
    "pictures, items or requests failed; 130 interrupted by Ctrl-C."
)
# Of C0, C1 and DEL everything but tab and newline: a model's words must not move the cursor or ring the bell.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show_error(error: RetinaError) -> None:
    """One line on stderr, or as many as the message has."""
    errors.print(f"[red]{error.code}[/red]", end=": ")
    errors.print(printable(error.message), markup=False, soft_wrap=True)


def say(text: str) -> None:
    """Beside the output, on stderr."""
    errors.print(printable(text), style="dim", markup=False, soft_wrap=True)


def printable(text: str) -> str:
    return _CONTROLS.sub("�", text)


def write(text: str) -> None:
    """A piece of an answer, at once. Pipes and files get it as it is."""
    print(printable(text) if output.is_terminal else text, end="", flush=True)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Until its end, or to exit code 130 by Ctrl-C."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        errors.print("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from None


def read_picture(path: Path) -> bytes:
    """Blocks. Raises InvalidRequest."""
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}", "image") from error


def reflow(text: str) -> str:
    """A docstring as paragraphs, each of one line: the terminal's width says where lines end."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def examples(*lines: str) -> str:
    """An epilog: each line stays a line."""
    return "\n\n".join(("Examples:", *lines))
