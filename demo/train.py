"""Trains the demo checkpoint from nothing: draws pictures, trains the tower, then the language half on its features.

    python demo/train.py --out demo/checkpoints/smolvlm --seed 0

Every stage leaves its result in the work folder, and a second run with the same options goes on from there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conversations import Talker, corpus
from language import Learner
from model import build_model, build_tokenizer, image_processor, write_checkpoint
from packing import Packer
from pool import Pool, draw_pool, join, load_pool, save_pool
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tower import Tower, encode_pool, round_tower, train_tower

RECIPE = 1
SAVE_EVERY, PRINT_EVERY = 250, 50


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
class Training:
    """One run: its options, its display and when it began."""

    options: argparse.Namespace
    progress: Progress
    started_s: float

    def run(self) -> None:
        """Go through all stages; the ones whose result lies in the work folder are skipped."""
        seed, work = self.options.seed, self.options.work
        work.mkdir(parents=True, exist_ok=True)
        tokenizer = self._tokenizer(work / "tokenizer.json")
        model = build_model(tokenizer, seed)
        pool = self._pool(work / "pool.safetensors")
        features = self._features(model, pool, work)
        rng = np.random.default_rng([seed, 2])
        learner = Learner(model, features, Packer(tokenizer, Talker(pool.scenes, rng)), self.options.language_steps)
        self._learn(learner, work / "language.pt")
        write_checkpoint(self.options.out, model, tokenizer, self._recipe())

    def _tokenizer(self, path: Path) -> Tokenizer:
        if not path.exists():
            build_tokenizer(corpus(6000, self.options.seed)).save(str(path))
        return Tokenizer.from_file(str(path))

    def _pool(self, path: Path) -> Pool:
        if not path.exists():
            bar, parts = self._bar("pictures", self.options.pictures), list[Pool]()
            for part in draw_pool(self.options.pictures, self.options.seed + 1, image_processor()):
                parts.append(part)
                bar.show(256 * len(parts), "")
            save_pool(join(parts), path)
        return load_pool(path)

    def _features(self, model: Any, pool: Pool, work: Path) -> torch.Tensor:
        tower, path = Tower(model), work / "tower.safetensors"
        if not path.exists():
            bar = self._bar("tower", self.options.tower_steps)
            train_tower(model, pool, self.options.tower_steps, self.options.seed, lambda done, loss, right: bar.show(
                done, f"loss {loss:.3f}, pictures read without a mistake {right:.1%}"))  # fmt: skip
            save_file(tower.state_dict(), path)
        tower.load_state_dict(load_file(path))
        round_tower(model)
        seen = work / "features.safetensors"
        if not seen.exists():
            save_file({"features": encode_pool(model, pool).to(torch.bfloat16)}, seen)
        return load_file(seen)["features"]

    def _learn(self, learner: Learner, path: Path) -> None:
        if path.exists():
            learner.resume(torch.load(path, weights_only=True))
        bar = self._bar("language", learner.total)
        while learner.step < learner.total:
            loss, exact = learner.advance()
            weakest = sorted(exact.items(), key=lambda item: item[1])[:4]
            shares = ", ".join(f"{kind} {share:.1%}" for kind, share in weakest)
            minutes = (time.monotonic() - self.started_s) / 60
            bar.show(
                learner.step, f"{minutes:.1f} min, loss {loss:.4f}, mean {np.mean(list(exact.values())):.1%}, {shares}"
            )
            if learner.step % SAVE_EVERY == 0:
                torch.save(learner.state(), path)
                write_checkpoint(self.options.out, learner.model, learner.packer.tokenizer, self._recipe())

    def _bar(self, name: str, total: int) -> Bar:
        return Bar(self.progress, self.progress.add_task(name, total=total, note=""), name)

    def _recipe(self) -> dict[str, Any]:
        names = ("seed", "pictures", "tower_steps", "language_steps")
        return {"recipe": RECIPE, **{name: getattr(self.options, name) for name in names}}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint from nothing.")
    parser.add_argument("--out", type=Path, default=Path("demo/checkpoints/smolvlm"), help="checkpoint folder")
    parser.add_argument("--work", type=Path, help="folder for what a resumed run needs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="take 1 where other programs run, else all cores")
    parser.add_argument("--pictures", type=int, default=65536)
    parser.add_argument("--tower-steps", type=int, default=2500)
    parser.add_argument("--language-steps", type=int, default=3600)
    options = parser.parse_args()
    options.work = options.work or Path(tempfile.gettempdir()) / f"retina-demo-smolvlm-{options.seed}"
    return options


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns) as progress:
        Training(options, progress, time.monotonic()).run()


if __name__ == "__main__":
    main()
