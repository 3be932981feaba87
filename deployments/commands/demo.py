"""`retina demo`: shows what the service does, by measuring it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from deployments.commands.service import silence_weight_bars
from deployments.commands.terminal import DEFAULT_CONFIG, ConfigOption, errors, output, read_picture, run
from deployments.config import RetinaConfig, read_config
from deployments.streaming_demo import QUESTION, Waits, measure

demo = typer.Typer(help="See what the service does.", no_args_is_help=True)
DEFAULT_IMAGE = Path("demo/images/blue-square-and-yellow-star.jpg")


@demo.command()
def streaming(
    image: Annotated[Path, typer.Option("--image", "-i", help="The picture that is asked about.")] = DEFAULT_IMAGE,
    question: Annotated[str, typer.Option("--question", "-q", help="That is asked each time.")] = QUESTION,
    rounds: Annotated[int, typer.Option(min=1, help="Of each kind; the table shows medians.")] = 5,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of each answer; the model's default.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Wait for a whole answer against wait for the first token, for every model of a config, in this process."""
    picture = read_picture(image)
    run(_streaming(read_config(config), picture, question, rounds, max_new_tokens))


async def _streaming(
    config: RetinaConfig, picture: bytes, question: str, rounds: int, max_new_tokens: int | None
) -> None:
    from deployments.local import open_graph

    async with contextlib.AsyncExitStack() as stack:
        config = in_memory(config)
        with errors.status("loading the models"):
            await silence_weight_bars(config)
            graph = await stack.enter_async_context(open_graph(config))
        image = await graph.add_image(picture)
        waits: list[Waits] = []
        with Progress(console=errors, transient=True) as progress:
            task = progress.add_task("asking", total=len(config.models))
            async for one in measure(graph, image, question, rounds, max_new_tokens):
                waits.append(one)
                progress.advance(task)
    output.print(_to_table(waits))


def in_memory(config: RetinaConfig) -> RetinaConfig:
    """Keeps nothing, so that a demonstration's questions are not among people's conversations."""
    streams = config.ingress.streams.model_copy(update={"store": "memory"})
    return config.model_copy(
        update={
            "images": config.images.model_copy(update={"store": "memory"}),
            "session_router": config.session_router.model_copy(update={"store": "memory"}),
            "ingress": config.ingress.model_copy(update={"streams": streams}),
        }
    )


def _to_table(waits: list[Waits]) -> Table:
    table = Table("model", title="milliseconds from the question, medians")
    for heading in ("whole answer", "first token", "share", "tokens"):
        table.add_column(heading, justify="right")
    for one in waits:
        share = f"{one.share:.0%}"
        table.add_row(one.model, f"{one.full_ms:.1f}", f"{one.first_token_ms:.1f}", share, str(one.num_tokens))
    return table
