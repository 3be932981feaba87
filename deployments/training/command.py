"""`retina train-projector`: options of the terminal to a run, and signals to a state that is saved.

Exit codes: 0 the checkpoint stands, 1 something is wrong (the reason is on stderr), 2 wrong usage, 130 interrupted with
the state saved.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from deployments.training.options import CACHE_FOLDER, Places, Recipe

if TYPE_CHECKING:
    from deployments.training.run import Outcome

INTERRUPTED = 130
DEFAULT = Recipe()


DataFile = Annotated[Path, typer.Option(help="Image-text pairs, a JSON object a line, or LLaVA's JSON array.")]
Base = Annotated[str, typer.Option(help="The LLaVA checkpoint to begin with: a folder, or a hub id.")]
Out = Annotated[Path, typer.Option(help="Folder of the checkpoint that comes out.")]
Revision = Annotated[str | None, typer.Option(help="Of a hub id, which needs one.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="How often each pair is seen; 1.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Of the optimizer, instead of --epochs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pairs in a forward pass.")]
Accumulation = Annotated[int, typer.Option(min=1, help="Forward passes in a step.")]
LearningRate = Annotated[float, typer.Option(min=1e-9, help="At its peak; it warms up and falls along a cosine.")]
Validation = Annotated[Path | None, typer.Option(help="Pairs to validate with, not trained on.")]
Share = Annotated[
    float | None,
    typer.Option(min=0, max=0.9, help=f"Of the pictures, to validate with; {DEFAULT.validation_share}."),
]
EvaluateEvery = Annotated[int, typer.Option(min=1, help="Steps between validations.")]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many validations without gain; never.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the data's order and of the validation share.")]
Threads = Annotated[int, typer.Option(min=1, help="Of torch.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is one.")]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="Of the frozen language model; auto: bfloat16 on CUDA. The projector is always float32."),
]
CacheDir = Annotated[Path, typer.Option(help="What the tower saw, kept for other runs; a folder of its own.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps after which the run's state is saved.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget what an earlier run left in --out.")]


def train_projector(
    data: DataFile,
    base: Base,
    out: Out,
    revision: Revision = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = DEFAULT.batch_size,
    accumulation: Accumulation = DEFAULT.accumulation,
    learning_rate: LearningRate = DEFAULT.learning_rate,
    validation: Validation = None,
    validation_share: Share = None,
    evaluate_every: EvaluateEvery = DEFAULT.evaluate_every,
    patience: Patience = None,
    seed: Seed = DEFAULT.seed,
    threads: Threads = DEFAULT.threads,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    cache_dir: CacheDir = CACHE_FOLDER,
    save_every: SaveEvery = 100,
    restart: Restart = False,
) -> None:
    """Fine-tune the projector of a LLaVA checkpoint on image-text pairs; tower and language model stay as they are.

    A line is {"image": PATH, "prompt": TEXT, "response": TEXT} (no prompt: a caption is asked for), or {"image": PATH,
    "conversations": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}, ...]}, or LLaVA's
    published form. Paths of pictures are relative to the file. Interrupted, by Ctrl-C or otherwise, the same command
    goes on where it stood and ends with the same weights (on a GPU, but for rounding).
    """
    if validation is not None and validation_share:
        raise typer.BadParameter("it takes the place of --validation-share", param_hint="--validation")
    place, precision = _resolve(device, dtype)
    share = validation_share if validation_share is not None else DEFAULT.validation_share if validation is None else 0
    recipe = Recipe(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        validation_share=share,
        evaluate_every=evaluate_every,
        patience=patience,
        seed=seed,
        threads=threads,
        device=place,
        dtype=precision,
    )
    _run(Places(data, out, base, revision, validation, cache_dir, save_every, restart), recipe)


def _resolve(
    device: Literal["auto", "cpu", "cuda"], dtype: Literal["auto", "float32", "bfloat16"]
) -> tuple[Literal["cpu", "cuda"], Literal["float32", "bfloat16"]]:
    """What `auto` comes to here, so that a run is gone on with as it began."""
    from deployments.models.placement import resolve_device

    place = resolve_device(device)
    if dtype == "auto":
        return place, "bfloat16" if place == "cuda" else "float32"
    return place, dtype


def _run(places: Places, recipe: Recipe) -> None:
    """Blocks. Raises RetinaErrors, and typer.Exit when interrupted."""
    from transformers.utils.logging import disable_progress_bar

    from deployments.training.progress import TerminalProgress
    from deployments.training.run import train_projector as train

    disable_progress_bar()  # its own, of loading weights, tears ours
    console = Console(stderr=True)
    try:
        with TerminalProgress(console) as progress:
            outcome = train(places, recipe, progress, stop_on_signals)
    except KeyboardInterrupt:
        console.print("interrupted; features that were taken and states that were saved stay")
        raise typer.Exit(INTERRUPTED) from None
    _tell(console, places.out, outcome)


def _tell(console: Console, out: Path, outcome: Outcome) -> None:
    standing = outcome.standing
    if not outcome.is_finished:
        console.print(f"interrupted after step {standing.step}, which is saved: the same command goes on from there")
        raise typer.Exit(INTERRUPTED)
    before = " (it was there already; --restart begins anew)" if outcome.was_done_before else ""
    console.print(f"{out} holds the projector of step {standing.best_step} of {standing.step}{before}", soft_wrap=True)
    if standing.best_loss is not None:
        console.print(f"validation loss {standing.first_loss:.4f} before, {standing.best_loss:.4f} now")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or a plain kill was received. A second one acts as it does without us."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()
