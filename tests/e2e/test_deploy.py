"""The shipped config on a cluster that is already there: `serve build`, `serve deploy`, `serve status`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from service import BIN, ROOT, free_port, ray_environment, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]

MODELS = ("smolvlm", "moondream", "qwen2_vl", "llava", "llava_qwen2")
PARTS = ("ingress", "session_router", "vision_encoder", *(f"generator-{model}" for model in MODELS))
ENVIRONMENT = {**ray_environment(), "RAY_AUTH_MODE": "disabled"}


def serve(*words: str | Path) -> str:
    done = subprocess.run(
        [BIN / "serve", *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head node with two cores, its working directory like a checkout; ended with the module."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "demo").symlink_to(ROOT / "demo")
    port, dashboard_port = free_port(), free_port()
    words = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard_port}"]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [BIN / "ray", *words], cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{dashboard_port}"
    try:
        wait_for(lambda: _answers(f"{url}/api/version"), 60, f"the dashboard, see {folder}/ray.log")
        yield url
        serve("shutdown", "--yes", "--address", url)
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def test_build_writes_a_config_of_the_same_deployments(tmp_path: Path) -> None:
    serve("build", "graph:local", "--output-path", tmp_path / "built.yaml")
    built = yaml.safe_load((tmp_path / "built.yaml").read_text())["applications"][0]
    assert built["import_path"] == "graph:local"
    assert {deployment["name"] for deployment in built["deployments"]} == set(PARTS)


def test_deploy_the_shipped_config(dashboard: str) -> None:
    assert not _answers("http://127.0.0.1:8000/healthz"), "the shipped config wants port 8000, which is taken"
    serve("deploy", ROOT / "configs" / "local.yaml", "--address", dashboard)
    wait_for(lambda: _answers("http://127.0.0.1:8000/readyz"), 90, "the deployed application")
    status = yaml.safe_load(serve("status", "--address", dashboard))["applications"]["retina"]
    assert status["status"] == "RUNNING"
    assert {name: one["status"] for name, one in status["deployments"].items()} == dict.fromkeys(PARTS, "HEALTHY")
    shown = httpx.get(f"{dashboard}/api/serve/applications/", timeout=10).json()["applications"]["retina"]
    assert set(shown["deployments"]) == set(PARTS)
    reply = httpx.post("http://127.0.0.1:8000/chat", data={"message": "Hello, my name is Ada"}, timeout=60)
    assert "Ada" in reply.json()["response"]
