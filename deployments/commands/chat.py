"""`retina chat`: talk with a model in this process, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.commands.terminal import DEFAULT_CONFIG, ConfigOption, errors, show_error
from deployments.config import RetinaConfig, read_config
from deployments.errors import InvalidRequest, RetinaError, UnknownModel

if TYPE_CHECKING:
    from deployments.local import Graph
    from deployments.types import ImageRef


def chat(
    image: Annotated[Path | None, typer.Option("--image", "-i", help="A picture to talk about.")] = None,
    question: Annotated[str | None, typer.Option("--question", "-q", help="Ask this and leave.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="One of the config's models.")] = None,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Go on with this session.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Talk with a model in this process, without a server.

    Without --question it asks for lines: /image PATH shows a picture, /new begins a new session, /quit leaves.
    """
    asyncio.run(_chat(read_config(config), image, question, model, session))


async def _chat(
    config: RetinaConfig, image: Path | None, question: str | None, model: str | None, session: str | None
) -> None:
    from deployments.local import open_graph

    async with contextlib.AsyncExitStack() as stack:
        with errors.status("loading the model"):
            graph = await stack.enter_async_context(open_graph(_needed(config, model, session)))
        talk = _Talk(graph, model, session)
        if image is not None:
            await talk.show(image)
        if question is not None:
            await talk.ask(question)
        else:
            await talk.converse()


def _needed(config: RetinaConfig, model: str | None, session: str | None) -> RetinaConfig:
    """Only the model that will answer is loaded; a session that goes on may be any model's. Raises UnknownModel."""
    names = [one.name for one in config.models]
    if model is not None and model not in names:
        raise UnknownModel(f"unknown model {model!r}; choose one of: {', '.join(names)}", "model")
    if session is not None and model is None:
        return config
    return config.with_model(model or config.first_model)


class _Talk:
    """One terminal's conversation."""

    def __init__(self, graph: Graph, model: str | None, session: str | None) -> None:
        self._graph = graph
        self._model = model
        self._session = session
        self._image: ImageRef | None = None  # shown with the next question

    async def show(self, path: Path) -> None:
        try:
            data = await asyncio.to_thread(_read, path)
        except OSError as error:
            raise InvalidRequest(f"{path}: {error.strerror}", "image") from error
        self._image = await self._graph.add_image(data)

    async def ask(self, question: str) -> None:
        """Print the answer as it comes."""
        from deployments.ingress.turns import TurnChunk, TurnInput, TurnStarted

        turn = TurnInput(
            request_id=uuid.uuid4().hex,
            tenant=self._graph.tenant,
            text=question,
            session_id=self._session,
            image=self._image,
            model=self._model,
        )
        async for event in self._graph.stream(turn):
            if isinstance(event, TurnStarted):
                self._session = event.session_id
            elif isinstance(event, TurnChunk):
                print(event.text, end="", flush=True)
        print()
        self._image = None

    async def converse(self) -> None:
        errors.print("[dim]/image PATH shows a picture, /new begins a new session, /quit leaves[/dim]")
        while (line := await _next_line()) is not None:
            try:
                await self._obey(line)
            except RetinaError as error:
                show_error(error)

    async def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/image":
            await self.show(Path(rest.strip()))
        elif command == "/new":
            self._session = None
        elif command.startswith("/"):
            raise InvalidRequest(f"unknown command {command}; there are /image PATH, /new and /quit")
        elif line:
            await self.ask(line)


def _read(path: Path) -> bytes:
    return path.expanduser().read_bytes()


async def _next_line() -> str | None:
    """A line from the terminal, None at its end or for /quit."""
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[str | None] = loop.create_future()

    def read() -> None:
        try:
            line = input("> ").strip()
        except EOFError:
            line = "/quit"
        except ValueError as error:  # bytes that are no text in the terminal's encoding
            loop.call_soon_threadsafe(reply.set_exception, InvalidRequest(f"that line cannot be read: {error}"))
            return
        loop.call_soon_threadsafe(reply.set_result, None if line == "/quit" else line)

    # A daemon: the loop's own threads are waited for at the end, so Ctrl-C would hang until Enter is pressed.
    threading.Thread(target=read, daemon=True).start()
    return await reply
