"""The `retina` command: chat in the terminal, check a config, serve it.

Exit codes: 0 done, 1 the request or the start failed (the reason is on stderr), 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from deployments.config import RetinaConfig, read_config
from deployments.errors import InvalidRequest, RetinaError

if TYPE_CHECKING:
    from deployments.local import Graph
    from deployments.types import ImageRef

app = typer.Typer(help="Retina: vision-language chat.", no_args_is_help=True, pretty_exceptions_enable=False)
errors = Console(stderr=True, highlight=False)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="A Serve config whose args are Retina's.")]
DEFAULT_CONFIG = Path("configs/local.yaml")


def main() -> None:
    """Entry point: a RetinaError becomes one line on stderr and exit code 1."""
    try:
        app()
    except RetinaError as error:
        errors.print(f"[red]{error.code}[/red]", end=": ")
        errors.print(error.message, markup=False, soft_wrap=True)
        sys.exit(1)


# ------------------------------------------------------------------------------------- chat


@app.command()
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
        with errors.status("loading the models"):
            graph = await stack.enter_async_context(open_graph(config))
        talk = _Talk(graph, model, session)
        if image is not None:
            await talk.show(image)
        if question is not None:
            await talk.ask(question)
        else:
            await talk.converse()


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
                errors.print(f"[red]{error.code}[/red]", end=": ")
                errors.print(error.message, markup=False, soft_wrap=True)

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


# ------------------------------------------------------------------------------------- serve and check


@app.command()
def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    in_process: Annotated[bool, typer.Option("--in-process", help="One process under uvicorn, without Ray.")] = False,
    port: Annotated[int | None, typer.Option(help="With --in-process: where to listen on 127.0.0.1; 8000.")] = None,
) -> None:
    """Serve a config: `serve run CONFIG` under Ray, or everything in one process."""
    parsed = read_config(config)  # refuse nonsense before anything starts
    if in_process:
        asyncio.run(_serve_in_process(parsed, port or 8000))
        return
    if port is not None:
        raise typer.BadParameter("under Ray the port stands in the config: http_options.port", param_hint="--port")
    _require_servable(parsed)
    os.execv(sys.executable, [sys.executable, "-m", "ray.serve.scripts", "run", str(config)])


def _require_servable(config: RetinaConfig) -> None:
    """What `graph.build` would refuse inside Ray, where `serve run` goes on waiting for ever."""
    from deployments.capacity import Cluster, Node, require_cpus, require_shared_stores

    require_shared_stores(config, None)
    if not _joins_a_cluster():
        require_cpus(config, Cluster((Node(_num_cores(), 0),)))


def _joins_a_cluster() -> bool:
    """Whether `serve run` finds a Ray that is there, instead of starting one on this machine's cores."""
    if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        return True
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray"
    return any((place / "ray_current_cluster").exists() for place in (folder, folder.parent))


def _num_cores() -> float:
    """Cores that Ray will see: those this process may use, or the container's share of them."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores  # no control group of the second version
    return cores if quota == "max" else min(cores, max(int(quota) // int(period), 1))


async def _serve_in_process(config: RetinaConfig, port: int) -> None:
    import uvicorn

    from deployments.ingress.request_id import RequestIdFilter
    from deployments.local import open_graph
    from deployments.logs import configure_logging

    configure_logging(RequestIdFilter())
    async with open_graph(config) as graph:
        server = uvicorn.Server(uvicorn.Config(graph.app(), host="127.0.0.1", port=port, log_level="info"))
        await server.serve()


@app.command()
def check(config: Annotated[Path, typer.Argument(help="A Serve config whose args are Retina's.")]) -> None:
    """Read a config without loading anything: resolved settings, replicas and what they ask of the cluster."""
    from deployments.capacity import capacity_table

    parsed = read_config(config)
    print(yaml.safe_dump(parsed.model_dump(mode="json"), sort_keys=False), end="")
    print("deployments, minimum replicas:")
    print(capacity_table(parsed))


@app.command()
def settings() -> None:
    """Print every configuration key with its default, its limits and its meaning, as Markdown."""
    from deployments.settings_table import settings_page

    print(settings_page(), end="")
