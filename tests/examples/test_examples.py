"""Every example runs as its first line says, and gets answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_service import ROOT
from needed_programs import require_program

pytestmark = pytest.mark.slow

FIRST = 'You asked: "What do you see in this image?"'
NEXT = 'You asked: "How many shapes are there?"'


def run(url: str, *command: str | Path) -> str:
    environment = {**os.environ, "RETINA_URL": url, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_official_openai_sdk(url: str, picture: Path) -> None:
    lines = run(url, sys.executable, "examples/openai_sdk.py", picture).splitlines()
    assert [line.split(":", 1)[0] for line in lines] == [
        "chat completions, a data URL, streamed",
        "responses, an uploaded file",
        "responses, the next turn",
    ]
    first, again, following = (line.split(": ", 1)[1] for line in lines)
    assert FIRST in first
    assert first == again
    assert NEXT in following


def test_a_websocket_client(url: str, picture: Path) -> None:
    first, following = run(url, sys.executable, "examples/websocket_client.py", picture).splitlines()
    assert FIRST in first
    assert NEXT in following


def test_curl(url: str, picture: Path) -> None:
    require_program("curl")
    said = run(url, "examples/chat.sh", picture)
    assert json.dumps(FIRST)[1:-1] in said
    assert "event: done" in said
    assert "Hello, my name is Ada" in said
    assert '"deleted":true' in said


@pytest.mark.node
def test_javascript(url: str, picture: Path) -> None:
    first, following = run(url, require_program("node", "nodejs"), "examples/chat.mjs", picture).splitlines()
    assert FIRST in first
    assert NEXT in following


@pytest.mark.parametrize("command", ["openai_sdk.py", "websocket_client.py"])
def test_without_a_picture_it_says_how_to_use_it(command: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"python examples/{command} PICTURE" in done.stderr
