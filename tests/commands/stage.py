"""What the tests of the commands play on: configs of fake models, real servers, real processes, pictures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ingress.bench import serving

from deployments.config import read_config
from deployments.fakes import FakeGenerator, Gate
from deployments.local import Graph, open_graph
from deployments.types import VisionEncoder

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "demo" / "images"
CIRCLE = PICTURES / "red-circle.png"
ENDS_WITHIN_S = 60


def config_file(folder: Path, *models: str, **sections: object) -> Path:
    """Of fake models, with stores on disk unless a section says otherwise."""
    args = {
        "data_dir": str(folder / "data"),
        "models": [{"name": name, "family": "fake"} for name in models or ("one", "another")],
        **sections,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"args": args}]}))
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return config_file(tmp_path)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were opened in this process; they answer without delay."""
    names: list[str] = []

    def open_noted(config: object, model: str, encoder: VisionEncoder) -> FakeGenerator:
        names.append(model)
        return FakeGenerator(model, encoder)

    monkeypatch.setattr("deployments.local.open_generator", open_noted)
    return names


@contextlib.asynccontextmanager
async def served(config: Path) -> AsyncIterator[tuple[str, Graph]]:
    """A real server over the graph of a config; `loaded` or `gated` say what its models are."""
    async with open_graph(read_config(config)) as graph, serving(graph.app()) as address:
        yield address, graph


def gate_models(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """Models that wait at the gate."""
    monkeypatch.setattr(
        "deployments.local.open_generator", lambda config, model, encoder: FakeGenerator(model, gate=gate)
    )


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


def environment(home: Path, **more: str) -> Mapping[str, str]:
    """Without a person's own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RETINA_", "COLUMNS"))}
    return {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "NO_COLOR": "1", **more}


def obey_sigint() -> None:
    """In the new process: shells let what runs in the background ignore it, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def begin(home: Path, *words: str, stdin: int | None = None) -> asyncio.subprocess.Process:
    """`retina` as a program of its own, in a session of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deployments.cli",
        *words,
        cwd=ROOT,
        env=environment(home),
        stdin=asyncio.subprocess.PIPE if stdin is None else stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=obey_sigint,
    )


async def end(process: asyncio.subprocess.Process, typed: bytes = b"") -> Ended:
    async with asyncio.timeout(ENDS_WITHIN_S):
        out, err = await process.communicate(typed)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def retina(home: Path, *words: str, typed: bytes = b"") -> Ended:
    ended = await end(await begin(home, *words), typed)
    assert "Traceback" not in ended.err, ended.err
    return ended


class BreakingProxy:
    """Passes connections on to a server, and cuts each after so many bytes of what the server says."""

    def __init__(self, address: str, *budgets: int) -> None:
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._budgets = list(budgets)  # of the connections in their order; later ones are not cut
        self.num_connections = 0
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.num_connections += 1
        budget = self._budgets.pop(0) if self._budgets else None
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        asking = asyncio.create_task(_pump(reader, to_server, None))
        try:
            await _pump(from_server, writer, budget)
        finally:
            asking.cancel()
            for side in (writer, to_server):
                side.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, budget: int | None) -> None:
    while (budget is None or budget > 0) and (data := await source.read(65536 if budget is None else budget)):
        budget = None if budget is None else budget - len(data)
        sink.write(data)
        await sink.drain()
