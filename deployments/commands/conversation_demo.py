"""`retina demo conversation`: several models in one conversation about a picture, which each of them sees."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.commands.answers import describe
from deployments.commands.demo import DEFAULT_IMAGE, in_memory
from deployments.commands.service import Narrow, Service, Where, names_of, open_service, require_model, with_models
from deployments.commands.terminal import (
    DEFAULT_CONFIG,
    ConfigOption,
    MaxNewTokens,
    output,
    printable,
    read_picture,
    run,
    say,
    write,
)

if TYPE_CHECKING:
    from deployments.ingress.schemas import ChatReply

SECOND_IMAGE = Path("demo/images/red-circle.png")


@dataclass(frozen=True, slots=True)
class Step:
    question: str
    shown: Path | None = None  # with the question
    switches: bool = False  # the next model answers


def script(first: Path, second: Path) -> tuple[Step, ...]:
    return (
        Step("Hello, my name is Ada."),
        Step("What do you see in this image?", shown=first),
        Step("How many shapes are there?"),
        Step("What do you see in this image?", switches=True),
        Step("What is my name?", switches=True),
        Step("What is in this image?", shown=second),
        Step("What color is it?", switches=True),
    )


def conversation(
    image: Annotated[Path, typer.Option("--image", "-i", help="What is talked about first.")] = DEFAULT_IMAGE,
    second: Annotated[Path, typer.Option("--second", help="The picture that takes its place.")] = SECOND_IMAGE,
    models: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="Who takes turns; repeat it. All of the config without.")
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """A conversation in which the picture and what was said are carried from model to model, in this process.

    Nothing of it is stored. Behind each answer stands what it took: a picture is encoded when a model first looks at
    it, and a question that goes on computes only what is new.
    """
    steps = script(image, second)
    pictures = {path: read_picture(path) for path in (image, second)}
    run(_converse(Where(None, config), steps, pictures, models or [], max_new_tokens))


async def _converse(
    where: Where, steps: tuple[Step, ...], pictures: dict[Path, bytes], models: list[str], max_new_tokens: int | None
) -> None:
    for model in models:
        require_model(names_of(where.config()), model)
    async with open_service(where, _narrow(models)) as service:
        names = models or [model.name for model in await service.models()]
        talking, session_id = 0, None
        for step in steps:
            talking += step.switches
            picture = pictures[step.shown] if step.shown is not None else None
            reply = await _ask(service, names[talking % len(names)], step, picture, session_id, max_new_tokens)
            session_id = reply.session_id
        history = await service.client.history(reply.session_id)
    say(f"{history.length} messages were kept, and the picture that was shown last")


def _narrow(models: list[str]) -> Narrow:
    return lambda config: in_memory(with_models(config, models) if models else config)


async def _ask(
    service: Service,
    model: str,
    step: Step,
    picture: bytes | None,
    session_id: str | None,
    max_new_tokens: int | None,
) -> ChatReply:
    from deployments.commands.requests import to_request
    from deployments.ingress.schemas import ChatReply, ChatRequest, ChunkEvent

    shown = f"[{step.shown.name}] " if step.shown is not None else ""
    output.print(f"you: {printable(shown)}{printable(step.question)}", markup=False, soft_wrap=True)
    output.print(printable(f"{model}: "), style="bold", end="", markup=False)
    image_id = (await service.client.add_image(picture)).id if picture is not None else None
    fields = {"message": step.question, "session_id": session_id, "model": model, "image_id": image_id}
    asked = to_request(ChatRequest, {**fields, "max_new_tokens": max_new_tokens})
    async with contextlib.aclosing(service.client.stream_chat_once(asked)) as events:
        async for event in events:
            if isinstance(event, ChunkEvent):
                write(event.text)
            elif isinstance(event, ChatReply):
                break
    assert isinstance(event, ChatReply), "a stream ends with the reply or raises"
    write("\n")
    say(f"  {describe(event.usage, event.timings)} · {event.conversation_length} messages kept")
    return event
