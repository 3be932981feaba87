"""`make serve-fake`: the page and a streamed turn, and the routes for one picture, from one small process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from fake_service import fake_service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with fake_service(tmp_path) as address:
        yield address


def test_the_page_and_a_streamed_turn(url: str) -> None:
    page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert "Retina" in page.text
    with httpx.stream("POST", f"{url}/chat", data={"message": "Hello there", "stream": "true"}) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("event:")]
    assert lines[0] == "event: start"
    assert lines[-1] == "event: done"
    assert lines.count("event: chunk") > 1


@pytest.mark.parametrize(
    ("path", "form", "piece"),
    [
        ("/caption", {"length": "short"}, "chunk"),
        ("/query", {"question": "What is it?"}, "chunk"),
        ("/detect", {"object": "star"}, "object"),
        ("/point", {"object": "star"}, "point"),
    ],
)
def test_the_routes_for_one_picture(url: str, path: str, form: dict[str, str], piece: str) -> None:
    photo = (ROOT / "demo" / "images" / "red-circle.png").read_bytes()
    plain = httpx.post(f"{url}{path}", data=form, files={"image": photo}).raise_for_status().json()
    again = {**form, "image_id": plain["image_id"], "stream": "true"}
    with httpx.stream("POST", f"{url}{path}", data=again) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("event:")]
    assert lines[0] == "event: start"
    assert lines[-1] == "event: done"
    assert set(lines[1:-1]) == {f"event: {piece}"}


def test_a_port_under_ray_is_refused_because_the_config_says_it() -> None:
    program = [sys.executable, "-c", "from deployments.cli import main; main()", "serve", "--port", "9000"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "http_options.port" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generator": {"replica": {"num_cpus": 4000}}}, "20000.7 CPU"),
        ({"images": {"store": "memory"}}, "images.store"),
    ],
)
def test_what_ray_would_wait_for_in_vain_ends_at_once(tmp_path: Path, change: dict[str, object], said: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    config["applications"][0]["args"].update(change)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    program = [sys.executable, "-c", "from deployments.cli import main; main()", "serve", "--config", str(path)]
    done = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**environment, "RAY_TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 1
    assert said in done.stderr


def test_a_service_that_is_told_to_end_closes_what_it_opened(tmp_path: Path) -> None:
    with fake_service(tmp_path) as url:
        httpx.post(f"{url}/chat", data={"message": "Hello"}).raise_for_status()
    log = (tmp_path / "log").read_text()
    assert "Application shutdown complete" in log
    assert "Traceback" not in log
