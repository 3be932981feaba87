"""What a person sees of a run: bars on a terminal; on anything else, a line for each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from deployments.training.state import Standing

SMOOTHING = 0.05  # share of a new step in the shown loss and speed


class TerminalProgress:
    """A Reporter, and the bars of the work before training. A context: the terminal is its until it is left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._training: TaskID | None = None
        self._loss: float | None = None  # smoothed
        self._tokens_per_s: float | None = None  # smoothed

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def count(self, what: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
        """A bar for work that is counted: tell it how many there are, then how many more are done."""
        bars: list[TaskID] = []

        def begin(total: int) -> Callable[[int], None]:
            bars.append(self._bars.add_task(what, total=total, figures=""))
            return lambda count: self._bars.advance(bars[-1], count)

        try:
            yield begin
        finally:
            for bar in bars:
                self._bars.remove_task(bar)

    def begin_training(self, standing: Standing, num_steps: int) -> None:
        self._training = self._bars.add_task("training", total=num_steps, completed=standing.step, figures="")

    # ------------------------------------------------------------------------------- Reporter

    def stepped(self, standing: Standing, loss: float, tokens_per_s: float) -> None:
        self._loss = _smooth(self._loss, loss)
        self._tokens_per_s = _smooth(self._tokens_per_s, tokens_per_s)
        self._show(standing)

    def evaluated(self, standing: Standing, loss: float) -> None:
        mark = " (best)" if standing.best_step == standing.step else ""
        train = f", loss {self._loss:.4f}" if self._loss is not None else ""
        self.say(f"step {standing.step}: validation loss {loss:.4f}{mark}{train}")
        self._show(standing)

    def _show(self, standing: Standing) -> None:
        figures = [f"loss {self._loss:.4f}"] if self._loss is not None else []
        if standing.best_loss is not None:
            figures.append(f"best validation {standing.best_loss:.4f}")
        if self._tokens_per_s is not None:
            figures.append(f"{self._tokens_per_s:,.0f} tokens/s")
        assert self._training is not None
        self._bars.update(self._training, completed=standing.step, figures=" · ".join(figures))


def _smooth(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)
