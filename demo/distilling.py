"""Trains another family's tower to show in every token what SmolVLM's tower shows there.

The finished SmolVLM has already found features that a language half can read. A tower that learns to give the same
ones, and to let the same truths be read off them, needs a fraction of the steps and leaves its language half little to
learn.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from optimizers import Optimizers, build_optimizers
from pool import IGNORED, READOUTS, Pool, normalized, thing_classes
from scenes import BACKGROUNDS, PLACES, Scene
from stages import Run, save_state
from torch import nn
from tower import score

BATCH, MUON_RATE = 64, 3e-3
SAVE_EVERY = 250  # steps
MAX_NOISE = 6.0  # standard deviation, of 255
NEAR, UNDECIDED = 0.3, 0.04  # of the picture's side: how near a thing is one's own, and how much nearer than the other
_NOTHING = [*thing_classes(None), 2]
_BACKGROUNDS = tuple(BACKGROUNDS)

Grid = tuple[int, int]  # lines and columns of tokens


class Pupil(Protocol):
    """A tower that is to be trained; its parameters are those of the family's own modules."""

    width: int  # of its features

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) pixel values to (B, tokens, width) features, line by line."""
        ...

    def teachable(self) -> nn.Module:
        """The module whose parameters are trained."""
        ...

    def grids(self) -> Iterator[tuple[Grid, tuple[int, int]]]:
        """For each step the grid of tokens, and the height and width of the pictures that have it."""
        ...


class Reader(nn.Module):
    """A tower with linear heads on its features, used in training only."""

    def __init__(self, pupil: Pupil, taught_width: int) -> None:
        super().__init__()
        self.tower, self.see = pupil.teachable(), pupil
        self.heads = nn.Linear(pupil.width, sum(READOUTS.values()))
        same = pupil.width == taught_width
        self.to_taught = nn.Identity() if same else nn.Linear(pupil.width, taught_width)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, tokens, all classes of all READOUTS), and features (B, tokens, taught_width) as taught."""
        features = self.see(values).float()
        return self.heads(F.rms_norm(features, features.shape[-1:])), self.to_taught(features)


def distil(run: Run, pupil: Pupil, pool: Pool, taught: torch.Tensor) -> None:
    """Train a tower in place; `taught` (N, 16, D) are SmolVLM's features of the pool's pictures."""
    options, path = run.options, run.options.work / "distilled.pt"
    torch.manual_seed(options.seed)
    reader = Reader(pupil, taught.shape[-1]).train()
    rest = [*reader.heads.parameters(), *reader.to_taught.parameters()]
    optimizers = build_optimizers(list(reader.tower.parameters()), rest, MUON_RATE)
    done = _resume(path, reader, optimizers)
    if shutil.which("g++"):
        reader.compile(dynamic=False)
    rng = np.random.default_rng([options.seed, done])
    variance = taught[:1024].float().var(dim=(0, 1))  # (D,)
    bar = run.bar("tower", options.tower_steps)
    for step, (grid, size) in zip(range(done, options.tower_steps), pupil.grids(), strict=False):
        chosen = rng.integers(0, len(pool), BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            logits, features = reader(normalized(noisy(resized(pool.pixels[chosen], size))))
        loss, right = score(logits, cell_targets([pool.scenes[index] for index in chosen], grid))
        missed = ((features - as_grid(taught[chosen].float(), grid)) ** 2 / variance).mean()
        optimizers.step(loss + missed, step / options.tower_steps, step)
        note = f"{run.minutes():.1f} min, loss {loss.item():.3f}, variance not learned {missed.item():.1%}"
        bar.show(step + 1, f"{note}, pictures read without a mistake {right:.1%}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == options.tower_steps:
            state = {"reader": reader.state_dict(), "optimizers": optimizers.state(), "step": step + 1}
            save_state(state, path)


def _resume(path: Path, reader: Reader, optimizers: Optimizers) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    reader.load_state_dict(state["reader"])
    optimizers.resume(state["optimizers"])
    return int(state["step"])


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Stretch (B, 3, S, S) pixels to a height and width."""
    if pixels.shape[-2:] == size:
        return pixels.float()
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)


def noisy(pixels: torch.Tensor) -> torch.Tensor:
    """Add noise to half of the pictures."""
    noise = torch.randn(pixels.shape) * (torch.rand(len(pixels), 1, 1, 1) - 0.5).clamp(min=0) * 2 * MAX_NOISE
    return (pixels + noise).clamp(0, 255)


def as_grid(features: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Spread (B, 16, D) features of a 4 x 4 grid over another one, (B, lines * columns, D)."""
    side = int(features.shape[1] ** 0.5)
    if grid == (side, side):
        return features
    lines = features.reshape(len(features), side, side, -1).movedim(-1, 1)
    mode = "nearest-exact" if grid[0] % side == 0 and grid[1] % side == 0 else "bilinear"
    spread = F.interpolate(lines, grid, mode=mode)
    return spread.flatten(2).movedim(1, -1)


def cell_targets(scenes: list[Scene | None], grid: Grid) -> torch.Tensor:
    """What should be read from each cell of a grid; (B, lines * columns, len(READOUTS)), IGNORED where undecided."""
    centers = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in grid[::-1])), -1).reshape(-1, 2)  # (cells, 2)
    spots = np.full((len(scenes), 2, 2), 9.0)  # where no thing is, far away
    classes = np.tile(_NOTHING, (len(scenes), 2, 1))
    wholes = np.tile([len(_BACKGROUNDS), 0], (len(scenes), 1))
    for index, scene in enumerate(scenes):
        for rank, thing in enumerate(scene.things if scene else ()):
            spots[index, rank] = PLACES[thing.place]
            classes[index, rank] = [*thing_classes(thing), rank]
        if scene:
            wholes[index] = [_BACKGROUNDS.index(scene.background), len(scene.things)]
    far = np.linalg.norm(centers[None, :, None] - spots[:, None], axis=-1)  # (B, cells, 2)
    near = far.argmin(-1)
    own = np.take_along_axis(classes, near[..., None], axis=1)
    least, other = far.min(-1), far.max(-1)
    own = np.where((other - least < UNDECIDED)[..., None], IGNORED, own)
    own = np.where((least > NEAR)[..., None], _NOTHING, own)
    whole = np.broadcast_to(wholes[:, None], (*near.shape, 2))
    return torch.from_numpy(np.concatenate([own, whole], -1))
