"""`retina serve` under Ray: what it hands over to `serve run`."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from deployments.commands import serve as command
from deployments.errors import StartupError
from deployments.serve_settings import CLUSTER_SETTINGS

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "configs" / "local.yaml"


class Started(Exception):
    """In place of the new program."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """The environment that the new program would get; of this one, only what a test sets begins with RAY_."""
    environment: dict[str, str] = {}

    def execve(program: str, words: list[str], given: Mapping[str, str]) -> None:
        assert (program, words[1:]) == (sys.executable, ["-m", "ray.serve.scripts", "run", str(CONFIG)])
        environment.update(given)
        raise Started

    for key in CLUSTER_SETTINGS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("os.execve", execve)
    return environment


def run() -> None:
    with pytest.raises(Started):
        command.serve(CONFIG, in_process=False, port=None)


def test_a_ray_that_is_begun_gets_the_fast_proxy(started: dict[str, str], tmp_path: Path) -> None:
    run()
    assert started.items() >= CLUSTER_SETTINGS.items()
    assert started["RAY_TMPDIR"] == str(tmp_path)


def test_what_the_user_sets_stays(started: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_PROXY_USE_GRPC", "0")
    run()
    assert started["RAY_SERVE_PROXY_USE_GRPC"] == "0"


def test_a_ray_that_is_there_is_left_as_it_is(started: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    run()
    assert started["RAY_ADDRESS"] == "ray.example:6379"
    assert not started.keys() & CLUSTER_SETTINGS.keys()


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.local.open_graph", None)  # would raise TypeError
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}: Address already in use"):
            command.serve(ROOT / "configs" / "fake.yaml", in_process=True, port=port)
