"""Trains the demo SmolVLM from nothing: draws pictures, trains the tower, then the language half on its features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from conversations import Talker, corpus
from language import Learner, learn
from model import build_model, build_tokenizer, image_processor, write_checkpoint
from packing import Packer
from pool import Pool, draw_pool, join, load_pool, save_pool
from safetensors.torch import load_file, save_file
from stages import Run
from tokenizers import Tokenizer
from tower import Tower, encode_pool, round_tower, train_tower
from transformers import Idefics3ForConditionalGeneration

RECIPE = 1


def train(run: Run) -> None:
    """Go through all stages; the ones whose result lies in the work folder are skipped."""
    options = run.options
    tokenizer = _tokenizer(options.work / "tokenizer.json", options.seed)
    model = build_model(tokenizer, options.seed)
    pool = load_pictures(run, options.work)
    features = _features(run, model, pool)
    talker = Talker(pool.scenes, np.random.default_rng([options.seed, 2]))
    learner = Learner(model, [features], Packer(tokenizer, talker), options.language_steps)

    def write() -> None:
        write_checkpoint(options.out, model, tokenizer, options.recipe(RECIPE, len(pool)))

    learn(run, learner, options.work / "language.pt", write)


def _tokenizer(path: Path, seed: int) -> Tokenizer:
    if not path.exists():
        build_tokenizer(corpus(6000, seed)).save(str(path))
    return Tokenizer.from_file(str(path))


def load_pictures(run: Run, folder: Path) -> Pool:
    """Read the pictures kept in a folder; draws them the first time."""
    path = folder / "pool.safetensors"
    if not path.exists():
        count = run.options.pictures
        bar, parts = run.bar("pictures", count), list[Pool]()
        for part in draw_pool(count, run.options.seed + 1, image_processor()):
            parts.append(part)
            bar.show(256 * len(parts), "")
        folder.mkdir(parents=True, exist_ok=True)
        save_pool(join(parts), path)
    return load_pool(path)


def load_features(run: Run, pool: Pool) -> torch.Tensor:
    """Read the finished SmolVLM's features of the shared pictures, (N, 16, D); encodes them the first time."""
    path = run.options.pool / "features.safetensors"
    if not path.exists():
        folder = run.options.checkpoints / "smolvlm"
        _encode(Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), pool, path)
    return load_file(path)["features"]


def _encode(model: Any, pool: Pool, path: Path) -> None:
    save_file({"features": encode_pool(model, pool).to(torch.bfloat16)}, path)


def _features(run: Run, model: Any, pool: Pool) -> torch.Tensor:
    options, tower = run.options, Tower(model)
    path, seen = options.work / "tower.safetensors", options.work / "features.safetensors"
    if not path.exists():
        bar = run.bar("tower", options.tower_steps)
        train_tower(model, pool, options.tower_steps, options.seed, lambda done, loss, right: bar.show(
            done, f"loss {loss:.3f}, pictures read without a mistake {right:.1%}"))  # fmt: skip
        save_file(tower.state_dict(), path)
    tower.load_state_dict(load_file(path))
    round_tower(model)
    if not seen.exists():
        _encode(model, pool, seen)
    return load_file(seen)["features"]
