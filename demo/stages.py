"""What every recipe is given: the options of its run, a work folder, and a progress display that also leaves a log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress, TaskID

PRINT_EVERY = 50


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    model: str  # a key of RECIPES
    out: Path  # folder of the finished checkpoint
    work: Path  # folder of this run's own stages
    pool: Path  # folder of the drawn pictures and of smolvlm's features of them; the work folder of smolvlm's recipe
    checkpoints: Path  # folder of the finished demo checkpoints that this one begins from
    seed: int
    pictures: int
    tower_steps: int
    language_steps: int

    def recipe(
        self, version: int, pictures: int | None = None, languages: tuple[str, ...] = ("en",)
    ) -> dict[str, object]:
        """What recipe.json says of this run, beside the sha256 of the weights.

        `pictures` are those that the pool holds, which may have been drawn with other options.
        """
        counts = {
            "pictures": pictures or self.pictures,
            "tower_steps": self.tower_steps,
            "language_steps": self.language_steps,
        }
        return {"recipe": version, "seed": self.seed, **counts, "languages": languages}


@dataclass(slots=True)
class Bar:
    """One stage's line in the progress display; also prints a line now and then, for logs."""

    progress: Progress
    task: TaskID
    name: str

    def show(self, done: int, note: str) -> None:
        """Set how many steps are done and what they led to."""
        self.progress.update(self.task, completed=done, note=note)
        if done % PRINT_EVERY == 0:
            self.progress.console.print(f"{self.name} {done}: {note}", highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Run:
    """One training: its options and its display."""

    options: Options
    progress: Progress
    started_s: float = field(default_factory=time.monotonic)

    def bar(self, name: str, total: int) -> Bar:
        """Add a stage to the display."""
        return Bar(self.progress, self.progress.add_task(name, total=total, note=""), name)

    def minutes(self) -> float:
        """How long this run has lasted."""
        return (time.monotonic() - self.started_s) / 60


def save_state(state: dict[str, object], path: Path) -> None:
    """Write what a resumed run needs; the file is replaced at once, so that an interruption leaves the last one."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)
