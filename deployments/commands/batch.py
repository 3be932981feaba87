"""`retina batch`: many pictures and questions in, a line of JSON for each out; goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deployments.commands.batch_items import (
    TASKS,
    Defaults,
    Source,
    TaskName,
    fields_of,
    models_of,
    open_source,
    to_asked,
)
from deployments.commands.batch_output import FileOutput, Output, StdOutput, open_output
from deployments.commands.batch_run import Batch, Tally
from deployments.commands.service import Narrow, Where, open_service, with_models
from deployments.commands.terminal import (
    ConfigInstead,
    Exit,
    MaxNewTokens,
    ModelOption,
    Seed,
    ServerOption,
    Temperature,
    errors,
    run,
    say,
)
from deployments.config import RetinaConfig
from deployments.errors import InvalidRequest
from deployments.types import CaptionLength

Input = Annotated[str, typer.Argument(metavar="INPUT", help="A folder of pictures, a JSONL file, or - for stdin.")]
OutputOption = Annotated[str, typer.Option("--output", "-o", help="The JSONL file that is written; - for stdout.")]
TaskOption = Annotated[TaskName, typer.Option("--task", "-t", help="Of pictures, and of lines that name none.")]
Concurrency = Annotated[int, typer.Option("--concurrency", "-j", min=1, max=1024, help="Items at a time.")]
Retries = Annotated[int, typer.Option("--retries", min=0, help="Of an item when the service is too busy for it.")]
Ordered = Annotated[bool, typer.Option("--ordered", help="Lines in the order of the input.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed in an earlier run.")]


def batch(
    source: Input,
    output: OutputOption,
    task: TaskOption = "caption",
    question: Annotated[str | None, typer.Option("--question", "-q", help="Of query and chat.")] = None,
    name: Annotated[str | None, typer.Option("--object", help="What detect and point look for.")] = None,
    length: Annotated[CaptionLength | None, typer.Option("--length", "-l", help="Of captions.")] = None,
    language: Annotated[str | None, typer.Option("--language", help="Of captions: en, ja, …")] = None,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    concurrency: Concurrency = 4,
    ordered: Ordered = False,
    retries: Retries = 5,
    retry_failed: RetryFailed = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Caption a folder of pictures, or answer the questions of a JSONL file.

    A line of the input is {"image": PATH, "task": NAME, …} with the fields of that task's request, and perhaps an "id";
    paths are relative to the file, URLs are refused. Without an id it is the number of the line, in folders the path.
    Options count for lines that do not say; chat is one question, whose session is deleted.

    A line of the output is {"id", "fingerprint", "task", "image", "reply"}, with "error" in place of "reply" where an
    item failed. The same command again goes on where it stood: items whose id and content are in the output are not
    asked again. Ctrl-C leaves a clean file.
    """
    given = {
        "question": question,
        "object": name,
        "length": length,
        "language": language,
        "model": model,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    defaults = Defaults(task, {name: value for name, value in given.items() if value is not None})
    where, items = Where.of(server, config), open_source(source)
    _check(defaults, is_folder=Path(source).expanduser().is_dir())
    if output == "-" and retry_failed:
        raise typer.BadParameter("stdout knows of no earlier run", param_hint="--retry-failed")
    lines: Output = StdOutput() if output == "-" else open_output(Path(output).expanduser(), retry_failed=retry_failed)
    try:
        run(_batch(where, items, defaults, lines, concurrency, retries, is_ordered=ordered))
    finally:
        lines.close()


def _check(defaults: Defaults, *, is_folder: bool) -> None:
    """All that can be wrong with the options is wrong before anything is loaded. Raises BadParameter."""
    try:
        if is_folder:
            to_asked(defaults.task, defaults.fields)
            return
        for task in TASKS:
            said_by_lines: dict[str, object] = {name: "?" for name in ("question", "object") if name in fields_of(task)}
            to_asked(task, {**said_by_lines, **defaults.of(task)})
    except InvalidRequest as error:
        raise typer.BadParameter(error.message, param_hint=f"--{(error.param or 'task').replace('_', '-')}") from error


async def _batch(
    where: Where,
    source: Source,
    defaults: Defaults,
    output: Output,
    concurrency: int,
    retries: int,
    *,
    is_ordered: bool,
) -> None:
    async with open_service(where, _needed(source, defaults)) as service:
        batch = Batch(service.client, source, defaults, output, concurrency, retries, is_ordered)
        await service.models()  # a service that is not there is told before any picture is read
        try:
            with _progress() as progress:
                total = len(source.given) if source.given is not None else None
                bar = progress.add_task("items", total=total, figures="")
                async for tally in batch.run():
                    _advance(progress, bar, tally)
        except BaseException:
            _sum_up(batch.tally)
            if isinstance(output, FileOutput):
                say("the same command goes on from there")
            raise
    _sum_up(batch.tally)
    if batch.tally.num_failed or batch.tally.num_failed_before:
        raise typer.Exit(Exit.SOME_FAILED)


def _needed(source: Source, defaults: Defaults) -> Narrow:
    def narrow(config: RetinaConfig) -> RetinaConfig:
        if source.given is None:
            return config
        return with_models(config, models_of(source.given, defaults, config) or [config.first_model])

    return narrow


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=errors,
        disable=not errors.is_terminal,
    )


def _advance(progress: Progress, bar: TaskID, tally: Tally) -> None:
    elapsed_s = progress.tasks[0].elapsed
    num_done = tally.num_answered + tally.num_failed  # what was done before says nothing of this run's speed
    figures = [f"{num_done / elapsed_s:.1f}/s"] if elapsed_s else []
    if tally.num_failed:
        figures.append(f"{tally.num_failed} failed")
    progress.update(bar, advance=1, figures=" · ".join(figures))


def _sum_up(tally: Tally) -> None:
    parts = [f"{tally.num_answered} answered", f"{tally.num_failed} failed"]
    if tally.num_skipped:
        parts.append(f"{tally.num_skipped} were answered before")
    if tally.num_failed_before:
        parts.append(f"{tally.num_failed_before} failed before (--retry-failed asks again)")
    say(", ".join(parts))
