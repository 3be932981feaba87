"""What the README shows of the command line and of Python runs as pasted; test_service.py has what asks a service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from service import BIN, ROOT

pytestmark = pytest.mark.torch

README = (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout with the README's photo, and keeps its state to itself."""
    for name in ("configs", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "photo.jpg").write_bytes((ROOT / "demo" / "images" / "blue-square-and-yellow-star.jpg").read_bytes())
    [pair] = re.findall(r"^echo '(\{.*\})' > pairs\.jsonl$", README, re.MULTILINE)
    (tmp_path / "pairs.jsonl").write_text(pair)
    return tmp_path


def run(words: list[str], folder: Path, typed: str = "") -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, input=typed)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_photo_is_where_the_readme_takes_it_from() -> None:
    source = re.search(r"^    cp (\S+) photo\.jpg$", README, re.MULTILINE)
    assert source
    assert (ROOT / source[1]).is_file()


def test_python_blocks(checkout: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        if "localhost:8000" in block:
            continue  # asks a running service: test_service.py
        assert "blue square" in run([sys.executable, "-c", block], checkout)


def test_retina_lines(checkout: Path) -> None:
    lines = re.findall(r"^\.venv/bin/(retina .*)$", README, re.MULTILINE)
    assert len(lines) >= 5
    outputs = [run(["bash", "-c", f"{BIN}/{line}"], checkout, "Hello, my name is Ada\n/quit\n") for line in lines]
    told = dict(zip(lines, outputs, strict=True))
    assert any("blue square" in text for line, text in told.items() if "--image" in line)
    assert "Ada" in told["retina chat"]
    assert "1.9 CPU" in told["retina check configs/local.yaml"]
    assert (checkout / "my-llava" / "config.json").is_file()


def test_the_map_names_what_is_there() -> None:
    mapped = re.search(r"## The map of the code\n\n```\n(.*?)```", README, re.DOTALL)
    assert mapped
    for line in mapped[1].splitlines():
        assert (ROOT / line.split()[0]).exists(), line


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert {"serve", "test", "check"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
