"""A terminal shows loss, validation, speed and the time that is left; a pipe gets a line for each evaluation."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from deployments.training.progress import TerminalProgress
from deployments.training.state import Standing


def show(is_terminal: bool) -> str:
    paper = StringIO()
    console = Console(file=paper, force_terminal=is_terminal, width=160)
    with TerminalProgress(console) as progress:
        with progress.count("looking at pictures") as count:
            advance = count(3)
            advance(3)
        standing = Standing(step=1, best_step=0, best_loss=3.5, first_loss=3.5)
        progress.begin_training(standing, num_steps=9)
        progress.evaluated(standing, 3.5)
        for step in range(2, 8):
            standing.step = step
            progress.stepped(standing, loss=2.25, tokens_per_s=1234.0)
        standing.best_step, standing.best_loss = 7, 3.25
        progress.evaluated(standing, 3.25)
    return paper.getvalue()


def test_on_a_terminal() -> None:
    text = show(is_terminal=True)
    for shown in ("training", "7/9", "loss 2.2500", "best validation 3.2500", "1,234 tokens/s", "0:00:"):
        assert shown in text, shown
    assert "step 7: validation loss 3.2500 (best)" in text


def test_in_a_pipe() -> None:
    assert show(is_terminal=False).splitlines() == [
        "step 1: validation loss 3.5000",
        "step 7: validation loss 3.2500 (best), loss 2.2500",
    ]
