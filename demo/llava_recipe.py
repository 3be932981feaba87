"""Trains the demo LLaVAs: one CLIP-shaped tower, frozen, behind which two language halves get a projector each.

The language half first learns to read the tower's rows through a projector that is then thrown away: the checkpoint's
own one begins anew, and `retina train-projector` trains it, with all else frozen, on pictures and what is said of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_files import write_recipe
from conversations import Talker
from distilling import as_grid, distil
from japanese_conversations import BilingualTalker
from language import Learner, learn
from language_start import begin_language, load_known, narrow
from llava_model import INTERMEDIATE, LANGUAGES, Language, build_model, build_tokenizer, write_checkpoint
from llava_tower import GRID, ClipPupil, begin_from_smolvlm, encode
from packing import Packer
from pairs import write_pairs
from pool import Pool, normalized
from safetensors.torch import load_file, save_file
from smolvlm_recipe import load_features, load_pictures
from stages import Options, Run
from tokenizers import Tokenizer

RECIPE = 1
LANGUAGE_PICTURES = 24576  # that the language half learns from; the pairs are about the ones after them
FITTING_STEPS, FITTING_RATE = 600, 2e-3
RATE = 1e-3  # of Muon for the language half: it has little to learn but to read other rows
OTHER_SHARE = 0.06  # of the pictures that the language half learns from show no scene for certain
ROW_TOKENS = 512  # a picture takes 64
TOWER_NAMES = "vision_tower.vision_model."
PAIRS = 8000  # pictures with what is said about them, for `retina train-projector`
PROJECTOR_OPTIONS = (
    "--epochs", "1", "--learning-rate", "0.002", "--dtype", "bfloat16", "--validation-share", "0.02",
    "--evaluate-every", "100",
)  # fmt: skip


def train(run: Run) -> None:
    """Go through all stages; the ones whose result lies in the work folder are skipped."""
    options, language = run.options, LANGUAGES[run.options.model]
    known = options.checkpoints / language.begins_as
    tokenizer = build_tokenizer(language, Tokenizer.from_file(str(known / "tokenizer.json")))
    model, pool = build_model(language, tokenizer, options.seed), load_pictures(run, options.pool)
    fresh = {name: value.clone() for name, value in model.model.multi_modal_projector.state_dict().items()}
    shared_folder(options).mkdir(parents=True, exist_ok=True)
    _take_tower(run, model, pool)
    _begin(run, model, tokenizer, language, pool)
    talker = _talker(language, pool, options.seed, LANGUAGE_PICTURES)
    packer = Packer(tokenizer, talker, language.dialect, ROW_TOKENS)
    learner = Learner(model, [_features(run, model, pool)], packer, options.language_steps, RATE)
    learn(run, learner, options.work / "language.pt", lambda: None)
    model.model.multi_modal_projector.load_state_dict(fresh)
    recipe = {**options.recipe(RECIPE, len(pool), language.languages), "projector_options": PROJECTOR_OPTIONS}
    write_checkpoint(options.work / "base", language, model, tokenizer, recipe)
    talker = _talker(language, pool, options.seed + 1, len(pool))
    write_pairs(options.work / "pairs", pool, talker, _pictures_of_pairs(pool))
    _train_projector(options.work, options.out, shared_folder(options) / "tower-cache")
    (options.out / "metrics.jsonl").unlink(missing_ok=True)  # of every step; what they came to is in training.json
    write_recipe(options.out, recipe)


def shared_folder(options: Options) -> Path:
    """What the tower saw, which is the same for both LLaVAs."""
    return options.work.with_name(f"retina-demo-llava-tower-{options.seed}")


def _talker(language: Language, pool: Pool, seed: int, num_pictures: int) -> Talker:
    rng = np.random.default_rng([seed, 2])
    talker = (BilingualTalker if "ja" in language.languages else Talker)(pool.scenes[:num_pictures], rng)
    talker.other_share = OTHER_SHARE
    return talker


def _pictures_of_pairs(pool: Pool) -> list[int]:
    """PAIRS pictures that the language half has not seen, and all the others like that without a scene."""
    end = LANGUAGE_PICTURES + PAIRS
    return [*range(LANGUAGE_PICTURES, end), *(i for i in range(end, len(pool)) if pool.scenes[i] is None)]


@torch.no_grad()
def _take_tower(run: Run, model: Any, pool: Pool) -> None:
    """Train the first LLaVA's tower; the second takes that one's, number for number."""
    tower = model.model.vision_tower
    if run.options.model == "llava":
        with torch.enable_grad():
            train_tower(run, tower, pool)
    else:
        weights = load_file(run.options.checkpoints / "llava" / "model.safetensors")
        named = {n.removeprefix(TOWER_NAMES): value for n, value in weights.items() if n.startswith(TOWER_NAMES)}
        tower.load_state_dict(named)
    for parameter in tower.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


def train_tower(run: Run, tower: Any, pool: Pool) -> None:
    """Train the tower in place, or read it from the work folder."""
    path = run.options.work / "tower.safetensors"
    if not path.exists():
        weights = load_file(run.options.checkpoints / "smolvlm" / "model.safetensors")
        begin_from_smolvlm(tower, weights, normalized(pool.pixels[:256]))
        distil(run, ClipPupil(tower), pool, load_features(run, pool))
        save_file(tower.state_dict(), path)
    tower.load_state_dict(load_file(path))


def _features(run: Run, model: Any, pool: Pool) -> torch.Tensor:
    """What the frozen tower sees in the pictures that the language half learns from."""
    path = shared_folder(run.options) / "features.safetensors"
    if not path.exists():
        found = encode(model.model.vision_tower, pool, LANGUAGE_PICTURES)
        save_file({"features": found.to(torch.bfloat16)}, path)
    return load_file(path)["features"]


def _begin(run: Run, model: Any, tokenizer: Tokenizer, language: Language, pool: Pool) -> None:
    """First weights: another demo model's language half, and a projector that gives it rows like those it knows."""
    weights, known = load_known(run.options.checkpoints / language.begins_as)
    begin_language(model, tokenizer, narrow(weights, INTERMEDIATE), known, language.same)
    taught = load_features(run, pool)[:LANGUAGE_PICTURES]
    _fit(model.model.multi_modal_projector, _features(run, model, pool), taught, run.options.seed)


def _fit(projector: torch.nn.Module, features: torch.Tensor, taught: torch.Tensor, seed: int) -> None:
    """Teach the projector to give, for the tower's rows, what SmolVLM's tower gives at the same place."""
    rng, optimizer = np.random.default_rng(seed), torch.optim.AdamW(projector.parameters(), lr=FITTING_RATE)
    for step in range(FITTING_STEPS):
        optimizer.param_groups[0]["lr"] = FITTING_RATE * (1 - step / FITTING_STEPS)
        chosen = rng.integers(0, len(taught), 32)
        missed = projector(features[chosen].float()) - as_grid(taught[chosen].float(), GRID)
        torch.autograd.backward((missed**2).mean())
        optimizer.step()
        optimizer.zero_grad()


def _train_projector(work: Path, out: Path, cache: Path) -> None:
    """Run the command as anybody would; interrupted, the next run goes on where it stood.

    It runs in the work folder because the checkpoint's record names the base as the command did.
    """
    command = [str(Path(sys.executable).with_name("retina")), "train-projector", *PROJECTOR_OPTIONS]
    places = ["--data", "pairs/pairs.jsonl", "--base", "base", "--out", str(out.resolve()), "--cache-dir", str(cache)]
    subprocess.run([*command, *places], check=True, cwd=work)
