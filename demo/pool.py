"""Holds drawn pictures as the checkpoint's own image processor sees them, with what each of them shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, Placed, Scene, Thing, draw_other, draw_scene, sample_scene
from transformers import Idefics3ImageProcessorPil

OTHER_SHARE = 0.06  # of the pictures show no scene
GRID = 4  # image tokens a side; a thing's place is a corner that four of their cells share
IGNORED = -100
# One linear head each reads these from every image token; the last class of the first four says "nothing here".
READOUTS = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "place": len(PLACES) + 1,
    "rank": 3,
    "background": len(BACKGROUNDS) + 1,
    "count": 3,
}
_SHAPES, _COLORS, _PLACES, _BACKGROUNDS = tuple(SHAPES), tuple(COLORS), tuple(PLACES), tuple(BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Pool:
    """Pictures and their truth; `scenes[i]` is None where picture i shows no scene."""

    pixels: torch.Tensor  # (N, 3, S, S) uint8, after the processor's resizing
    targets: torch.Tensor  # (N, image_tokens, len(READOUTS)) int64, IGNORED where undecided
    scenes: list[Scene | None]

    def __len__(self) -> int:
        return len(self.scenes)


def draw_pool(count: int, seed: int, processor: Idefics3ImageProcessorPil) -> Iterator[Pool]:
    """Yield pools of up to 256 fresh pictures that add up to `count`; the same seed gives the same pictures."""
    rng = np.random.default_rng(seed)
    for start in range(0, count, 256):
        drawn = [_draw(rng) for _ in range(min(256, count - start))]
        pixels = to_pixels([image for image, _, _ in drawn], processor)
        targets = np.stack([_targets(scene, placed) for _, scene, placed in drawn])
        yield Pool(pixels, torch.from_numpy(targets), [scene for _, scene, _ in drawn])


def draw_pictures(count: int, seed: int) -> Iterator[tuple[Image.Image, Scene | None]]:
    """Yield the pictures of `draw_pool` as they are before any image processor, with what they show."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image, scene, _ = _draw(rng)
        yield image, scene


def _draw(rng: np.random.Generator) -> tuple[Image.Image, Scene | None, list[Placed]]:
    if rng.random() < OTHER_SHARE:
        return draw_other(rng), None, []
    scene = sample_scene(rng)
    image, placed = draw_scene(scene, rng)
    return image, scene, placed


def join(pools: list[Pool]) -> Pool:
    """Make one pool of many."""
    scenes = [scene for pool in pools for scene in pool.scenes]
    return Pool(torch.cat([p.pixels for p in pools]), torch.cat([p.targets for p in pools]), scenes)


def to_pixels(images: list[Image.Image], processor: Idefics3ImageProcessorPil) -> torch.Tensor:
    """Preprocess pictures as serving does; (N, 3, S, S) uint8, from which `normalized` restores the exact floats."""
    values = processor([[image] for image in images], return_tensors="pt")["pixel_values"][:, 0]
    return torch.round((values * 0.5 + 0.5) * 255).to(torch.uint8)


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Turn uint8 pixels into the processor's pixel_values."""
    return (pixels.float() / 255 - 0.5) / 0.5


def _targets(scene: Scene | None, placed: list[Placed]) -> np.ndarray:
    nothing = [len(SHAPES), len(COLORS), len(PLACES), 2]
    if scene is None:
        return np.array([[*nothing, len(BACKGROUNDS), 0]] * GRID**2)
    whole = [_BACKGROUNDS.index(scene.background), len(placed)]
    local = [[*thing_classes(thing), rank] for rank, thing in enumerate(scene.things)]
    rows = [_owned(x, y, local, placed, nothing) + whole for y, x in np.ndindex(GRID, GRID)]
    return np.array(rows)


def thing_classes(thing: Thing | None) -> list[int]:
    """Classes of the first three READOUTS for a thing, or for none."""
    if thing is None:
        return [len(SHAPES), len(COLORS), len(PLACES)]
    return [_SHAPES.index(thing.shape), _COLORS.index(thing.color), _PLACES.index(thing.place)]


def _owned(x: int, y: int, local: list[list[int]], placed: list[Placed], nothing: list[int]) -> list[int]:
    cx, cy = (x + 0.5) / GRID, (y + 0.5) / GRID
    near = sorted((float(np.hypot(p.x - cx, p.y - cy)), i) for i, p in enumerate(placed))
    if near[0][0] > 0.3:
        return nothing
    if len(near) > 1 and near[1][0] - near[0][0] < 0.04:
        return [IGNORED] * len(nothing)
    return local[near[0][1]]


def save_pool(pool: Pool, path: Path) -> None:
    """Write the pool as one safetensors file."""
    codes = torch.tensor([_to_codes(scene) for scene in pool.scenes])
    save_file({"pixels": pool.pixels, "targets": pool.targets, "scenes": codes}, path)


def load_pool(path: Path) -> Pool:
    """Read what `save_pool` wrote."""
    tensors = load_file(path)
    return Pool(tensors["pixels"], tensors["targets"], [_from_codes(row) for row in tensors["scenes"].tolist()])


def _to_codes(scene: Scene | None) -> list[int]:
    if scene is None:
        return [-1] * 7
    codes = [code for thing in scene.things for code in thing_classes(thing)]
    return [_BACKGROUNDS.index(scene.background), *codes, *[-1] * (6 - len(codes))]


def _from_codes(codes: list[int]) -> Scene | None:
    if codes[0] < 0:
        return None
    triples = [codes[1:4], codes[4:7]]
    things = tuple(Thing(_SHAPES[s], _COLORS[c], _PLACES[p]) for s, c, p in triples if s >= 0)
    return Scene(things, _BACKGROUNDS[codes[0]])
