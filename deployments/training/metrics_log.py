"""The log of a run: a JSON object a line for every step and every evaluation, and none twice after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

from deployments.training.state import Standing, write_whole


class MetricsLog:
    """Goes on behind the lines that belong to `standing`; what an interrupted run wrote beyond it is taken out."""

    def __init__(self, path: Path, standing: Standing) -> None:
        kept = [line for line in _read_lines(path) if _belongs(line, standing)]
        write_whole(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **values: float | str | None) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()  # for those who watch it; a lost line at a power cut does not matter

    def close(self) -> None:
        self._file.close()


def _read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n") if path.is_file() else []


def _belongs(line: bytes, standing: Standing) -> bool:
    try:
        values = json.loads(line)
        is_evaluation = "validation_loss" in values
        return bool(values["step"] <= (standing.evaluated_step if is_evaluation else standing.step))
    except (ValueError, KeyError, TypeError):
        return False  # cut short by a kill, or none of ours
