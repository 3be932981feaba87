"""The `retina` command: its parts put together, and errors as one line on stderr.

Exit codes stand in `commands/terminal.py`, and in the help.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deployments.commands.batch import batch
from deployments.commands.bench import bench
from deployments.commands.chat import chat
from deployments.commands.config import check, openapi, settings
from deployments.commands.conversation_demo import conversation
from deployments.commands.demo import demo
from deployments.commands.get import get
from deployments.commands.manual import manual
from deployments.commands.serve import serve
from deployments.commands.terminal import EXIT_CODES, Exit, examples, reflow, show_error
from deployments.commands.vision import caption, detect, point, query
from deployments.errors import RetinaError
from deployments.training.command import train_projector

EXAMPLES = {
    chat: examples(
        "retina chat",
        'retina chat --image photo.jpg --question "What do you see in this image?"',
        "retina chat --server http://127.0.0.1:8000 --timings",
        'retina chat -q "Hello" --json | jq -r .response',
    ),
    caption: examples("retina caption photo.jpg", "retina caption --length short --json photos/*.jpg"),
    query: examples('retina query photo.jpg "What color is the square?"'),
    detect: examples("retina detect photo.jpg square", "retina detect photo.jpg square --json | jq .objects"),
    point: examples("retina point photo.jpg star"),
    batch: examples(
        "retina batch photos --output captions.jsonl",
        'retina batch photos -o answers.jsonl --task query --question "Is there a square?" --server http://127.0.0.1:8000',
        "retina batch questions.jsonl -o answers.jsonl --concurrency 16 --retry-failed",
        "find . -name '*.png' | jq -Rc '{image: ., task: \"caption\"}' | retina batch - -o -",
    ),
    bench: examples("retina bench", "retina bench --users 16 --requests 8 --json"),
    serve: examples("retina serve", "retina serve --in-process --config configs/fake.yaml --port 8080"),
    check: examples("retina check configs/local.yaml"),
    get: examples("retina get /-/engine", "retina get /readyz --server http://127.0.0.1:8000"),
    conversation: examples("retina demo conversation", "retina demo conversation -m smolvlm -m qwen2_vl"),
}

app = typer.Typer(
    help="Retina: vision-language chat.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    chat,
    caption,
    query,
    detect,
    point,
    batch,
    serve,
    bench,
    check,
    settings,
    openapi,
    get,
    train_projector,
    manual,
)
for home, command in (*((app, one) for one in COMMANDS), (demo, conversation)):
    home.command(help=reflow(command.__doc__ or ""), epilog=EXAMPLES.get(command))(command)
app.add_typer(demo, name="demo")


def _show_version(*, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"retina {version('retina-serve')}")
        raise typer.Exit(Exit.DONE)


@app.callback()
def _retina(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _show_version(wanted=wanted),
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Retina: vision-language chat."""


def main() -> None:
    """Entry point: a RetinaError becomes a line on stderr and exit code 1."""
    try:
        app()
    except RetinaError as error:
        show_error(error)
        sys.exit(Exit.FAILED)


if __name__ == "__main__":
    main()
