"""Data sets of coloured pictures, and tiny LLaVAs to begin with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

if TYPE_CHECKING:
    from deployments.training.options import Places

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (220, 220, 40)}


def make_data(folder: Path, num_pictures: int = 12) -> Path:
    """A file of pairs, several of them about one picture, in all the forms that are read."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    for number in range(num_pictures):
        name = list(COLOURS)[number % len(COLOURS)]
        colour = tuple(channel + number for channel in COLOURS[name])  # no two pictures are equal
        Image.new("RGB", (30 + 5 * number, 40), colour).save(folder / f"{number}.png")
        image = f"{number}.png"
        lines.append({"image": image, "prompt": "What colour is it?", "response": name})
        lines.append({"image": image, "response": f"There is a {name} area, and nothing else to be seen."})
        turns = [("human", "<image>\nHello."), ("gpt", "Hi."), ("human", "Which colour?"), ("gpt", f"It is {name}.")]
        conversation = [{"from": role, "value": text} for role, text in turns]
        lines.append({"id": f"{number}", "image": image, "conversations": conversation})
    return write_lines(folder / "pairs.jsonl", lines)


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def lines() -> Callable[..., Path]:
    return write_lines


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_llava(**options of build_llava) -> its folder, built once a run."""
    from tiny_llava import build_llava  # late: it imports torch

    built: dict[str, Path] = {}

    def build(**options: Any) -> Path:
        key = repr(sorted(options.items(), key=lambda item: item[0]))
        if key not in built:
            built[key] = build_llava(tmp_path_factory.mktemp("llava"), **options)
        return built[key]

    return build


@pytest.fixture
def base(tiny_llava: Callable[..., Path]) -> Path:
    return tiny_llava()


@pytest.fixture
def places(tmp_path: Path, base: Path, data: Path) -> Places:
    from deployments.training.options import Places

    return Places(data, tmp_path / "out", str(base), cache=tmp_path / "cache", save_every=1000)


class Spoken:
    """A terminal that nobody sees, and what was said on it."""

    def __init__(self) -> None:
        from deployments.training.progress import TerminalProgress

        self._paper = StringIO()
        self.progress = TerminalProgress(Console(file=self._paper))

    @property
    def text(self) -> str:
        return self._paper.getvalue()


@pytest.fixture
def spoken() -> Spoken:
    return Spoken()
