"""`retina serve --in-process` over the fake model, as a process of its own: what clients of all kinds are tested on."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parent.parent
READY_WITHIN_S = 60
END_WITHIN_S = 30


@contextlib.contextmanager
def fake_service(folder: Path, change: Callable[[dict[str, Any]], None] = lambda args: None) -> Iterator[str]:
    """Its address, while it runs; configs/fake.yaml with a data folder of its own and what `change` does to args."""
    document = yaml.safe_load((ROOT / "configs" / "fake.yaml").read_text())
    args = document["applications"][0]["args"]
    args["data_dir"] = str(folder / "data")
    change(args)
    path = folder / "fake.yaml"
    path.write_text(yaml.safe_dump(document))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["serve", "--in-process", "--config", str(path), "--port", str(port)]
    program = [sys.executable, "-c", "from deployments.cli import main; main()", *words]
    with (folder / "log").open("wb") as log, subprocess.Popen(program, cwd=ROOT, stderr=log, stdout=log) as process:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
        assert process.wait(END_WITHIN_S) == 0, (folder / "log").read_text()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended by itself: {log.read_text()}"
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{url}/readyz").raise_for_status()
            return
        time.sleep(0.05)
    raise AssertionError(f"not ready within {READY_WITHIN_S} s: {log.read_text()}")
