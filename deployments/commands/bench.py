"""`retina bench`: a small load test of one's own service, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from deployments.commands.load import Load, Measured, run_load, warm_up
from deployments.commands.service import Service, Where, check_address, is_loopback, open_service
from deployments.commands.terminal import (
    SERVER_VARIABLE,
    Exit,
    ModelOption,
    errors,
    output,
    printable,
    read_picture,
    run,
    say,
)

DEFAULT_SERVER = "http://127.0.0.1:8000"
QUESTION = "What do you see in this image?"


def bench(
    users: Annotated[int, typer.Option("--users", "-u", min=1, max=1024, help="Who ask at the same time.")] = 4,
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, help="Of each user, one after the other.")] = 4,
    image: Annotated[
        Path | None, typer.Option("--image", "-i", help="One picture for everybody; else a new one with each request.")
    ] = None,
    question: Annotated[str, typer.Option("--question", "-q", help="Of every request.")] = QUESTION,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = 64,
    model: ModelOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as one JSON object.")] = False,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Also a service on another machine.")] = False,
    server: Annotated[
        str, typer.Option("--server", envvar=SERVER_VARIABLE, metavar="URL", help="The service that is measured.")
    ] = DEFAULT_SERVER,
) -> None:
    """Put a small load on a service that runs, and tell what its users wait for.

    Every request is a question about a picture in a session of its own, streamed; the picture is uploaded before the
    clock starts, sessions and pictures are deleted afterwards. A request that fails counts as failed and is in no
    other figure. The client shares the machine's cores with a service on the same machine. For comparisons with other
    servers, scenarios and figures of the hardware there is `python -m benchmarks.graph` in a checkout.
    """
    address = check_address(server)
    if not allow_remote and not is_loopback(address):
        raise typer.BadParameter(
            f"{address} is not on this machine; a load is for one's own service: --allow-remote", param_hint="--server"
        )
    picture = read_picture(image) if image is not None else None
    load = Load(users, requests, question, model, max_new_tokens, picture)
    run(_bench(Where(address), load, as_json=as_json))


async def _bench(where: Where, load: Load, *, as_json: bool) -> None:
    async with open_service(where) as service:
        with errors.status("one question to begin with"):
            await warm_up(service.client, load)
        measured = await _measure(service, load)
    if as_json:
        print(json.dumps(measured.figures()))
    else:
        output.print(_to_table(measured))
    if measured.num_failed:
        say(f"{measured.num_failed} failed, the first with {measured.first_failure}")
        raise typer.Exit(Exit.SOME_FAILED)


async def _measure(service: Service, load: Load) -> Measured:
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("requests", total=load.users * load.requests, figures="")
        async for measured in run_load(service.client, load):
            failed = f"{measured.num_failed} failed" if measured.num_failed else ""
            progress.update(bar, advance=1, figures=failed)
    return measured


def _to_table(measured: Measured) -> Table:
    figures = measured.figures()
    table = Table("", box=None, show_header=False)
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, "-" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value))
    for code, count in measured.failures.items():
        table.add_row(f"failed: {printable(code)}", str(count))
    return table
