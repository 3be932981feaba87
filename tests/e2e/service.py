"""`serve run` as people run it: a subprocess with a config file, watched until it is ready, ended by Ctrl-C."""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
READY_WITHIN_S = 120
END_WITHIN_S = 60


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def local_config(folder: Path, port: int, change: Callable[[dict[str, Any]], None] = lambda args: None) -> Path:
    """configs/local.yaml with a port and a data folder of its own, and whatever else `change` does to its args."""
    document = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    document["http_options"]["port"] = port
    args = document["applications"][0]["args"]
    args["data_dir"] = str(folder / "data")
    change(args)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def ray_environment() -> dict[str, str]:
    """A new folder for Ray at each call: in one that was used, Ray looks for the cluster that was there before."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    folder = tempfile.mkdtemp(prefix="ray-")  # short: paths of sockets have at most 107 characters
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {
        **kept,
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def wait_for(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Poll until the condition holds. Raises AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within_s:g} s"
        time.sleep(0.1)


@dataclass
class Service:
    """One `serve run` or the like. `start` and `stop` may be called in turn; the data folder outlives both."""

    config: Path
    port: int
    log: Path
    command: tuple[str | Path, ...] = (BIN / "serve", "run")  # the config follows
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    ready_s: float = field(default=0.0, init=False)  # from the last start to readiness

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        found = re.search(r"dashboard at.*?(http://[\d.]+:\d+)", self.log.read_text())
        assert found, "serve run names its dashboard"
        return found[1]

    def launch(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, str(self.config)],
                cwd=ROOT,
                env=ray_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        started = time.monotonic()
        self.launch()
        wait_for(self._is_ready, READY_WITHIN_S, f"ready, see {self.log}")
        self.ready_s = time.monotonic() - started

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def client(self, timeout_s: float = 60) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout_s)

    def get(self, path: str) -> Any:
        with self.client() as client:
            return client.get(path).raise_for_status().json()

    def _is_ready(self) -> bool:
        assert self.process is not None
        log = self.log.read_text()
        assert self.process.poll() is None, f"serve run ended by itself:\n{log[-4000:]}"
        assert "Failed to update the deployments" not in log, f"a part does not start:\n{log[-4000:]}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False


def events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """(event, data) of a server-sent event stream."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            yield name, json.loads(line.removeprefix("data:"))


def unique_picture(seed: int) -> bytes:
    """A PNG that no other seed gives."""
    from PIL import Image

    picture = Image.effect_noise((96, 96), 40.0).convert("RGB")
    picture.putpixel((0, 0), (seed % 256, seed // 256 % 256, seed // 65536 % 256))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def ask(service: Service, image: bytes | None = None, **form: str) -> httpx.Response:
    """POST /chat as a form."""
    files = {"image": ("photo", image)} if image is not None else None
    with service.client() as client:
        if files is None:
            return client.post("/chat", data=form)
        return client.post("/chat", data=form, files=files)
