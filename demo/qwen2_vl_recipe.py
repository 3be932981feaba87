"""Trains the demo Qwen2-VL, in English and Japanese; both its halves begin with what SmolVLM's have learned."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distilling import Grid, distil
from japanese_conversations import BilingualTalker, corpus
from language import Learner, learn
from language_start import begin_language, load_known
from packing import Packer
from pool import Pool
from qwen2_vl_model import END, START, build_model, build_tokenizer, dialect, write_checkpoint
from qwen2_vl_tower import GRIDS, QwenPupil, begin_from_smolvlm, encode
from safetensors.torch import load_file, save_file
from smolvlm_recipe import load_features, load_pictures
from stages import Run
from tokenizers import Tokenizer

RECIPE = 1
LANGUAGES = ("en", "ja")
SQUARES, OTHERS = 24576, 1536  # pictures that the language half learns from: square, and of each other grid
OTHER_SHARE = 0.06  # of them show no scene for certain
RATE = 2e-3  # of Muon for the language half, less than from nothing: much of it is known
WORD_TURNS = 6000  # conversations that the tokenizer is made from


def train(run: Run) -> None:
    """Go through all stages; the ones whose result lies in the work folder are skipped."""
    options = run.options
    tokenizer = _tokenizer(options.work / "tokenizer.json", options.seed)
    model = build_model(tokenizer, options.seed)
    pool = load_pictures(run, options.pool)
    train_tower(run, model.model.visual, pool)
    features, scenes, tables = _features(run, model.model.visual, pool)
    begin_from_llama(model, tokenizer, options.checkpoints / "smolvlm")
    talker = BilingualTalker(scenes, np.random.default_rng([options.seed, 2]))
    talker.other_share = OTHER_SHARE
    packer = Packer(tokenizer, talker, dialect(tokenizer, tables))
    learner = Learner(model, features, packer, options.language_steps, RATE)

    def write() -> None:
        write_checkpoint(options.out, model, tokenizer, options.recipe(RECIPE, len(pool), LANGUAGES))

    learn(run, learner, options.work / "language.pt", write)


def _tokenizer(path: Path, seed: int) -> Tokenizer:
    if not path.exists():
        build_tokenizer(corpus(WORD_TURNS, seed)).save(str(path))
    return Tokenizer.from_file(str(path))


@torch.no_grad()
def train_tower(run: Run, visual: Any, pool: Pool) -> None:
    """Train the tower in place, or read it from the work folder; its weights end rounded as they will be stored."""
    path = run.options.work / "tower.safetensors"
    if not path.exists():
        begin_from_smolvlm(visual, load_file(run.options.checkpoints / "smolvlm" / "model.safetensors"))
        with torch.enable_grad():
            distil(run, QwenPupil(visual, run.options.seed), pool, load_features(run, pool))
        save_file(visual.state_dict(), path)
    visual.load_state_dict(load_file(path))
    for parameter in visual.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def _features(run: Run, visual: Any, pool: Pool) -> tuple[list[torch.Tensor], list[Any], tuple[tuple[int, Grid], ...]]:
    """Stored features by grid, the scenes of all pictures in them, and how many there are of each grid."""
    path, bounds = run.options.work / "features.safetensors", [0, *range(SQUARES, len(pool), OTHERS)]
    ranges = [range(first, end) for first, end in pairwise(bounds[: len(GRIDS) + 1])]
    if not path.exists():
        found = [encode(visual, pool, chosen, grid) for chosen, grid in zip(ranges, GRIDS, strict=True)]
        save_file({_name(grid): part.to(torch.bfloat16) for grid, part in zip(GRIDS, found, strict=True)}, path)
    stored = load_file(path)
    scenes = [pool.scenes[index] for chosen in ranges for index in chosen]
    tables = tuple((len(chosen), grid) for chosen, grid in zip(ranges, GRIDS, strict=True))
    return [stored[_name(grid)] for grid in GRIDS], scenes, tables


def _name(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"


def begin_from_llama(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Begin with SmolVLM's Llama, whose layers are Qwen2's but for the biases of query, key and value."""
    weights, known = load_known(folder)
    same = {START: "<|im_start|>", END: "<end_of_utterance>", "user": "User", "assistant": "Assistant"}
    begin_language(model, tokenizer, weights, known, same)
