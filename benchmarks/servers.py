"""Starts the servers that are measured: Retina's graph under `retina serve`, and `transformers serve` beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.load import Service
from benchmarks.processes import running

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
READY_WITHIN_S = 180.0
PROBE_WITHIN_S = 5.0
MODEL = "bench"


@dataclass(frozen=True, slots=True)
class GraphSettings:
    checkpoint: Path
    dtype: str = "auto"
    num_threads: int = 2  # of torch, in the generator
    vision_threads: int = 1
    family: str = "smolvlm"
    device: str = "cpu"
    overrides: Mapping[str, object] = field(default_factory=dict)  # by dotted key of the configuration

    def arguments(self, data_dir: Path) -> dict[str, object]:
        """`args` of the Serve application. Raises ValueError for an override that leads through what is no section."""
        arguments: dict[str, object] = {
            "data_dir": str(data_dir),
            "device": self.device,
            "models": [{"name": MODEL, "family": self.family, "checkpoint": str(self.checkpoint.resolve())}],
            "ingress": {"replica": {"num_cpus": 0.2}, "turn_timeout_s": 600},
            "session_router": {"replica": {"num_cpus": 0.1}, "lease_s": 650},
            "vision_encoder": {"replica": {"num_cpus": 0.4}, "num_threads": self.vision_threads, "timeout_s": 300},
            "generator": {
                "replica": {"num_cpus": 1.0},
                "dtype": self.dtype,
                "num_threads": self.num_threads,
                "max_timeout_s": 600,
            },
        }
        for key, value in self.overrides.items():
            _set(arguments, key, value)
        return arguments


def _set(arguments: dict[str, object], key: str, value: object) -> None:
    *path, last = key.split(".")
    section = arguments
    for step in path:
        inner = section.setdefault(step, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{key}: {step} is no section of the configuration")
        section = inner
    section[last] = value


@contextlib.contextmanager
def retina(settings: GraphSettings) -> Iterator[Service]:
    """The graph under a Ray of its own, as `retina serve` sets it up. Raises NotStarted."""
    with _scratch() as folder:
        port = free_port()
        config = write_config(settings, folder, port)
        # A folder that Ray has not seen: in one that was used it looks for the cluster that was there before.
        ray_folder = folder / "ray"
        ray_folder.mkdir()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "RAY_TMPDIR": str(ray_folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        url = f"http://127.0.0.1:{port}"
        with running(
            [str(BIN / "retina"), "serve", "--config", str(config)],
            folder=ROOT,
            log=folder / "serve.log",
            environment=environment,
            is_ready=lambda: answers(f"{url}/readyz"),
            ready_within_s=READY_WITHIN_S,
        ) as process:
            yield Service(url, "retina", MODEL, process.pid)


def write_config(settings: GraphSettings, folder: Path, port: int) -> Path:
    """A Serve config file in the folder."""
    application = {
        "name": "retina",
        "route_prefix": "/",
        "import_path": "graph:build",
        "args": settings.arguments(folder / "data"),
    }
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 600},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [application],
    }
    path = folder / "graph.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@contextlib.contextmanager
def transformers_serve(command: Path, checkpoint: Path, dtype: str, device: str) -> Iterator[Service]:
    """`command` is the `transformers` of an environment with the extra `bench`. Raises NotStarted with its log."""
    with _scratch() as folder:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        model = str(checkpoint.resolve())
        place = ["--host", "127.0.0.1", "--port", str(port)]
        with running(
            [str(command), "serve", model, *place, "--device", device, "--dtype", dtype],
            log=folder / "serve.log",
            environment={**os.environ, "HF_HUB_OFFLINE": "1"},
            is_ready=lambda: answers(f"{url}/health"),
            ready_within_s=READY_WITHIN_S,
        ) as process:
            yield Service(url, "openai", model, process.pid)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder that is kept, for its logs, only when something fails."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))  # short: the paths of Ray's sockets may have 107 characters
    try:
        yield folder
    except Exception:
        print(f"logs are kept in {folder}", file=sys.stderr)
        raise
    except BaseException:  # Ctrl-C
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)  # Ray may still write while it goes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET gives 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_WITHIN_S) as response:
            return int(response.status) == 200
    except OSError:  # URLError and HTTPError are some
        return False


def parse_override(text: str) -> tuple[str, object]:
    """`generator.num_slots=32` to its key and its value, which is read as YAML. Raises ValueError."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, yaml.safe_load(value)


def describe(settings: GraphSettings) -> str:
    """For the table: what was not left as it is."""
    words = [settings.dtype, f"{settings.num_threads} threads"]
    return ", ".join([*words, *(f"{key}={json.dumps(value)}" for key, value in settings.overrides.items())])
