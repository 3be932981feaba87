"""Trains a demo checkpoint from nothing, or from the demo checkpoints that were trained before it.

    python demo/train.py smolvlm --out demo/checkpoints/smolvlm --seed 0

RECIPES names the module of each model. It has one function, `train(run: Run) -> None`, that goes through the stages
and writes `run.options.out`; `stages.py` says what it is given. Every stage leaves its result in the work folder, and a
second run with the same options goes on from there. The models stand in the order in which they can be made.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from stages import Options, Run


@dataclass(frozen=True, slots=True)
class Recipe:
    """Where a model's recipe is, and how many steps it takes unless told otherwise."""

    module: str
    tower_steps: int
    language_steps: int


RECIPES = {
    "smolvlm": Recipe("smolvlm_recipe", 2500, 3600),
    "qwen2_vl": Recipe("qwen2_vl_recipe", 1500, 1900),
    "llava": Recipe("llava_recipe", 400, 1350),
    "llava_qwen2": Recipe("llava_recipe", 0, 1500),
    "moondream": Recipe("moondream_recipe", 0, 4300),
}


def parse_options() -> tuple[Options, int]:
    """Read the command line; returns the options and how many threads to use."""
    parser = argparse.ArgumentParser(description="Train a demo checkpoint.")
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="checkpoint folder, demo/checkpoints/MODEL unless told otherwise")
    parser.add_argument("--work", type=Path, help="folder for what a resumed run needs")
    parser.add_argument("--pool", type=Path, help="folder of the pictures that all recipes share")
    parser.add_argument("--checkpoints", type=Path, default=Path("demo/checkpoints"), help="of the models made before")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="take 1 where other programs run, else all cores")
    parser.add_argument("--pictures", type=int, default=40960)
    parser.add_argument("--tower-steps", type=int)
    parser.add_argument("--language-steps", type=int)
    given = parser.parse_args()
    recipe, temporary = RECIPES[given.model], Path(tempfile.gettempdir())
    options = Options(
        model=given.model,
        out=given.out or Path("demo/checkpoints") / given.model,
        work=given.work or temporary / f"retina-demo-{given.model}-{given.seed}",
        pool=given.pool or temporary / f"retina-demo-smolvlm-{given.seed}",
        checkpoints=given.checkpoints,
        seed=given.seed,
        pictures=given.pictures,
        tower_steps=recipe.tower_steps if given.tower_steps is None else given.tower_steps,
        language_steps=recipe.language_steps if given.language_steps is None else given.language_steps,
    )
    return options, given.threads


def main() -> None:
    options, threads = parse_options()
    torch.set_num_threads(threads)
    options.work.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns) as progress:
        importlib.import_module(RECIPES[options.model].module).train(Run(options, progress))


if __name__ == "__main__":
    main()
