"""`retina serve`: a config under Ray, or everything in one process."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.capacity import num_cores
from deployments.commands.terminal import DEFAULT_CONFIG, ConfigOption, run
from deployments.config import RetinaConfig, read_config
from deployments.errors import StartupError
from deployments.serve_settings import CLUSTER_SETTINGS


def serve(
    config: ConfigOption = DEFAULT_CONFIG,
    in_process: Annotated[bool, typer.Option("--in-process", help="One process under uvicorn, without Ray.")] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="With --in-process: where to listen on 127.0.0.1; 8000."),
    ] = None,
) -> None:
    """Serve a config under Ray: `serve run CONFIG` with a faster HTTP proxy; or everything in one process."""
    parsed = read_config(config)  # refuse nonsense before anything starts
    if in_process:
        run(_serve_in_process(parsed, port or 8000))
        return
    if port is not None:
        raise typer.BadParameter("under Ray the port stands in the config: http_options.port", param_hint="--port")
    _require_servable(parsed)
    environment = os.environ if _joins_a_cluster() else {**CLUSTER_SETTINGS, **os.environ}
    os.execve(sys.executable, [sys.executable, "-m", "ray.serve.scripts", "run", str(config)], environment)


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
    cores = float(num_cores())
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
    with _bound(port) as address:  # before anything is loaded; uvicorn would find out afterwards, and exit by itself
        async with open_graph(config) as graph:
            settings = uvicorn.Config(graph.app(), log_level="info", ws_max_size=config.ingress.max_body_bytes)
            print(f"http://127.0.0.1:{port}", file=sys.stderr)  # of a socket that is bound uvicorn says no URL
            signal.signal(signal.SIGTERM, _note)  # uvicorn raises it again at its end, before the graph is closed
            await uvicorn.Server(settings).serve([address])


def _note(number: int, _: object) -> None:
    """The server has ended because of this signal."""


def _bound(port: int) -> socket.socket:
    """Does not listen: who connects before all is loaded is refused, as by a service that is not there."""
    # The protocol is named, or asyncio leaves Nagle's algorithm on, and small replies wait for 40 ms.
    address = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        address.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address.bind(("127.0.0.1", port))
    except OSError as error:
        address.close()
        raise StartupError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; --port names another port") from error
    return address
