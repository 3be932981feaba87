"""`retina caption`, `query`, `detect` and `point`: one task about pictures, in this process or by a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.commands.answers import show_task, show_timings
from deployments.commands.service import Service, Where, only, open_service
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
    errors,
    output,
    printable,
    read_picture,
    run,
    show_error,
    write,
)
from deployments.errors import RetinaError, ServerUnreachable
from deployments.types import CaptionLength, Skill

if TYPE_CHECKING:
    from deployments.client.service_client import TaskReplyBody
    from deployments.ingress.task_requests import PictureFields

Pictures = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files of pictures.")]
Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture's file.")]
MaxObjects = Annotated[int | None, typer.Option("--max-objects", min=1, max=150, help="At most so many; 50.")]
Object = Annotated[str, typer.Argument(metavar="OBJECT", help="What to look for, as in: circle.")]


def caption(
    images: Pictures,
    length: Annotated[CaptionLength | None, typer.Option("--length", "-l", help="normal without it.")] = None,
    language: Annotated[str | None, typer.Option("--language", help="en, ja, pt-BR, …; en without it.")] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What to say of it, in place of length and language.")
    ] = None,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    as_json: JsonFlag = False,
    timings: TimingsFlag = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Describe pictures."""
    from deployments.ingress.task_requests import CaptionRequest

    words = {"length": length, "language": language, "prompt": prompt}
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    asked = _request(CaptionRequest, {**words, **sampling, "model": model})
    run(_run(Where.of(server, config), "caption", asked, images, as_json=as_json, timings=timings))


def query(
    image: Picture,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="About the picture.")],
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Think first; needs a model that can.")] = False,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    as_json: JsonFlag = False,
    timings: TimingsFlag = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Answer one question about a picture, without a session."""
    from deployments.ingress.task_requests import QueryRequest

    words = {"question": question, "reasoning": reasoning or None}
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    asked = _request(QueryRequest, {**words, **sampling, "model": model})
    run(_run(Where.of(server, config), "query", asked, [image], as_json=as_json, timings=timings))


def detect(
    image: Picture,
    name: Object,
    max_objects: MaxObjects = None,
    model: ModelOption = None,
    as_json: JsonFlag = False,
    timings: TimingsFlag = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Find boxes around the objects of a kind, in shares of the picture's width and height, where a model can."""
    from deployments.ingress.task_requests import DetectRequest

    asked = _request(DetectRequest, {"object": name, "max_objects": max_objects, "model": model})
    run(_run(Where.of(server, config), "detect", asked, [image], as_json=as_json, timings=timings))


def point(
    image: Picture,
    name: Object,
    max_objects: MaxObjects = None,
    model: ModelOption = None,
    as_json: JsonFlag = False,
    timings: TimingsFlag = False,
    server: ServerOption = None,
    config: ConfigInstead = None,
) -> None:
    """Find a point on each of the objects of a kind, in shares of the picture's width and height, where a model can."""
    from deployments.ingress.task_requests import PointRequest

    asked = _request(PointRequest, {"object": name, "max_objects": max_objects, "model": model})
    run(_run(Where.of(server, config), "point", asked, [image], as_json=as_json, timings=timings))


def _request(shape: type[PictureFields], given: dict[str, object]) -> PictureFields:
    """Raises BadParameter naming the option."""
    from deployments.commands.requests import to_request

    return to_request(shape, given)


async def _run(
    where: Where, skill: Skill, asked: PictureFields, images: Sequence[Path], *, as_json: bool, timings: bool
) -> None:
    num_failed = 0
    async with open_service(where, only(asked.model, skill)) as service:
        for image in images:
            try:
                await _answer(service, asked, image, with_name=len(images) > 1, as_json=as_json, timings=timings)
            except ServerUnreachable:
                raise
            except RetinaError as error:
                if len(images) == 1:
                    raise
                num_failed += 1
                errors.print(f"{printable(str(image))}: ", end="", markup=False)
                show_error(error)
    if num_failed:
        raise typer.Exit(Exit.SOME_FAILED)


async def _answer(
    service: Service, asked: PictureFields, image: Path, *, with_name: bool, as_json: bool, timings: bool
) -> None:
    picture = await service.client.add_image(await asyncio.to_thread(read_picture, image))
    asked = asked.model_copy(update={"image_id": picture.id})
    if with_name and not as_json:
        output.print(printable(f"{image}:"), style="bold", markup=False, soft_wrap=True)
    reply = await show_task(service.client.stream_task(asked), quiet=as_json)
    if as_json:
        print(json.dumps({"image": str(image), **reply.model_dump(mode="json")}, ensure_ascii=False))
    else:
        _end(reply)
    if timings:
        show_timings(reply.usage, reply.timings)


def _end(reply: TaskReplyBody) -> None:
    """Of the line that an answer is; places have theirs."""
    from deployments.ingress.task_replies import DetectReply, PointReply

    if not isinstance(reply, DetectReply | PointReply):
        write("\n")
    elif not (reply.objects if isinstance(reply, DetectReply) else reply.points):
        errors.print("nothing found")
