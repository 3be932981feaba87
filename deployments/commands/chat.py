"""`retina chat`: a conversation in the terminal, with a server or with a model in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.commands.interrupts import Left
from deployments.commands.lines import Lines, open_lines
from deployments.commands.service import Narrow, Service, Where, only, open_service
from deployments.commands.talk import Talk
from deployments.commands.talk_commands import COMMANDS, obey
from deployments.commands.terminal import (
    ConfigInstead,
    Exit,
    JsonFlag,
    MaxNewTokens,
    ModelOption,
    Seed,
    ServerOption,
    Temperature,
    TimingsFlag,
    run,
    say,
    show_error,
)
from deployments.config import RetinaConfig
from deployments.errors import RetinaError


def chat(
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A picture to talk about.")] = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="Ask this and leave.")] = None,
    model: ModelOption = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with this session.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    as_json: JsonFlag = False,
    timings: TimingsFlag = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Talk with a model about pictures.

    Without --question it takes a line at a time, from the terminal or from a pipe: a question, or a command such as
    /image PATH, /model NAME, /history, /sessions, /resume ID, /new, /quit; /help lists them. Ctrl-C stops the answer
    that is being given, a second one leaves. An answer whose connection breaks is gone on with.
    """
    if as_json and question is None:
        raise typer.BadParameter("it needs --question: a conversation is for people", param_hint="--json")
    where = Where.of(server, config)
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}

    async def talk() -> None:
        async with open_service(where, _needed(model, session, converses=question is None)) as service:
            await _talk(service, Talk(service, model, session, sampling, as_json, timings), image, question)

    run(talk())


def _needed(model: str | None, session: str | None, *, converses: bool) -> Narrow:
    """The model that will answer; a session that goes on may be any model's."""

    def narrow(config: RetinaConfig) -> RetinaConfig:
        one = only(model)(config)
        lives_in_memory = "memory" in (config.session_router.store, config.images.store, config.ingress.streams.store)
        if model is None and session is not None:
            return config
        # Another model takes the place of this one by opening the graph anew, which would empty memory stores.
        return config if converses and lives_in_memory else one

    return narrow


async def _talk(service: Service, talk: Talk, image: Path | None, question: str | None) -> None:
    try:
        if image is not None:
            await talk.show(image)
        if question is not None:
            if not await talk.ask(question):
                raise Left
            return
        models = [one.name for one in await service.models()]
        say("/help lists what there is beside questions, /quit leaves")
        await _converse(talk, open_lines((*COMMANDS, "/quit"), models))
    except Left:
        raise typer.Exit(Exit.INTERRUPTED) from None


async def _converse(talk: Talk, lines: Lines) -> None:
    """Until the end. A failure ends nothing, but a script learns of it by the exit code."""
    has_failed = False
    while (line := await lines.next_line()) is not None and line != "/quit":
        try:
            if line.startswith("/"):
                await obey(talk, line)
            elif line:
                await talk.ask(line)
        except RetinaError as error:
            show_error(error)
            has_failed = True
    if has_failed and not sys.stdin.isatty():
        raise typer.Exit(Exit.FAILED)
