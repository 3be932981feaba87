"""Trains the demo Moondream behind the demo SmolVLM's tower: draws pictures with boxes, and trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from moondream_language import Learner
from moondream_model import build_config, build_tokenizer, write_checkpoint
from moondream_network import build_model
from moondream_packing import Packer
from moondream_pictures import make_pictures
from moondream_tasks import Asker, corpus
from stages import Run, save_state
from tokenizers import Tokenizer

RECIPE = 1
SAVE_EVERY = 200


def train(run: Run) -> None:
    """Go through all stages; what lies in the work folder is taken as it is."""
    options = run.options
    if options.tower_steps:
        raise SystemExit(
            "--tower-steps: the demo Moondream takes over the demo SmolVLM's tower as it is; leave it at 0"
        )
    tokenizer = _tokenizer(options.work / "tokenizer.json", options.seed)
    model = build_model(build_config(tokenizer), options.checkpoints / "smolvlm", options.seed)
    bar = run.bar("pictures", options.pictures)
    pictures = make_pictures(
        model.vision, options.pictures, options.seed + 1, options.work / "pictures", lambda done: bar.show(done, "")
    )
    asker = Asker(pictures.scenes, np.random.default_rng([options.seed, 2]))
    learner = Learner(model, pictures, Packer(tokenizer, asker, pictures.boxes), options.language_steps)
    _learn(run, learner, options.work / "language.pt")
    write_checkpoint(options.out, model.state_dict(), tokenizer, options.recipe(RECIPE))


def _tokenizer(path: Path, seed: int) -> Tokenizer:
    if not path.exists():
        build_tokenizer(corpus(4000, seed)).save(str(path))
    return Tokenizer.from_file(str(path))


def _learn(run: Run, learner: Learner, path: Path) -> None:
    if path.exists():
        learner.resume(torch.load(path, weights_only=True))
    bar = run.bar("language", learner.total)
    while learner.step < learner.total:
        losses, exact = learner.advance()
        worst = sorted(exact.items(), key=lambda item: item[1])[:4]
        sums = " ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in worst)
        mean = np.mean(list(exact.values()))
        bar.show(learner.step, f"{run.minutes():.1f} min, {sums}, mean {mean:.1%}, {shares}")
        if learner.step % SAVE_EVERY == 0 or learner.step == learner.total:
            save_state(learner.state(), path)
