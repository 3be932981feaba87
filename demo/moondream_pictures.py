"""Draws pictures with the box of each thing, and keeps the tower's features of them in parts that survive a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from moondream_model import GRID
from PIL import Image, ImageChops, ImageDraw
from pool import IGNORED, OTHER_SHARE, READOUTS, thing_classes
from safetensors.torch import load_file, save_file
from scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    Scene,
    Thing,
    _canvas_size,
    _draw_thing,
    _tint,
    _worn,
    draw_other,
    place_things,
    sample_scene,
)

from deployments.models.moondream_crops import cut_crops
from deployments.models.moondream_modules import Vision
from deployments.models.moondream_patches import stitch

PART = 1024  # pictures a file
MAX_DISTANCE, UNDECIDED = 0.3, 0.04  # of the picture's sides: what is further shows nothing, what is tied is not taught
_BACKGROUNDS, _PLACES, _SHAPES, _COLORS = tuple(BACKGROUNDS), tuple(PLACES), tuple(SHAPES), tuple(COLORS)

Report = Callable[[int], None]  # pictures done


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture and its truth."""

    image: Image.Image
    scene: Scene | None  # None where it shows no scene
    boxes: np.ndarray  # (things, 4) centre x, centre y, width, height, in fractions of the picture's sides


@dataclass(frozen=True, slots=True)
class Pictures:
    """Many pictures as the language half sees them."""

    features: torch.Tensor  # (N, GRID**2, 2 * enc_dim) bfloat16: the whole picture's, then the crops' pooled ones
    boxes: torch.Tensor  # (N, 2, 4) centre x, centre y, width, height; -1 where there is no thing
    targets: torch.Tensor  # (N, GRID**2, len(READOUTS)) what stands at each patch, IGNORED where undecided
    owners: torch.Tensor  # (N, GRID**2) index of the thing whose box the patch should know, -1 for none
    scenes: list[Scene | None]


def draw(rng: np.random.Generator) -> Drawn:
    """Draw a picture at random."""
    if rng.random() < OTHER_SHARE:
        return Drawn(draw_other(rng), None, np.zeros((0, 4)))
    return draw_boxed(sample_scene(rng), rng)


def draw_boxed(scene: Scene, rng: np.random.Generator) -> Drawn:
    """Draw a scene as `scenes.draw_scene` does, and measure what each thing covers."""
    size = _size(rng)
    zoom = 1 if rng.random() < 0.15 else 2
    canvas = Image.new("RGB", (size[0] * zoom, size[1] * zoom), _tint(BACKGROUNDS[scene.background], 5, rng))
    boxes = []
    for thing, spot in zip(scene.things, place_things(scene, rng), strict=True):
        before = canvas.copy()
        _draw_thing(ImageDraw.Draw(canvas), thing, spot, canvas.size, rng)
        boxes.append(_box(before, canvas))
    image = canvas if zoom == 1 else canvas.resize(size, Image.Resampling.BOX)
    return Drawn(_worn(image, rng), scene, np.array(boxes))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < 0.9:
        return _canvas_size(rng)
    side = int(rng.uniform(200, 640))
    other = int(side * rng.uniform(0.5, 1.0))
    return (side, other) if rng.random() < 0.5 else (other, side)


def _box(before: Image.Image, after: Image.Image) -> list[float]:
    covered = ImageChops.difference(before, after).getbbox()
    assert covered, "every thing is drawn in another colour than its background"
    left, top, right, bottom = covered
    width, height = after.size
    return [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]


@torch.no_grad()
def encode(vision: Vision, images: list[Image.Image]) -> torch.Tensor:
    """What the projection receives of RGB pictures; (B, GRID**2, 2 * enc_dim)."""
    made = [cut_crops(image, vision.sizes) for image in images]
    pixels = torch.from_numpy(np.concatenate([crops.pixels for crops in made])).permute(0, 3, 1, 2)
    values = ((pixels.to(torch.bfloat16) / 255 - 0.5) / 0.5).float()
    seen = torch.split(vision(values).float(), [len(crops.pixels) for crops in made])
    return torch.stack([_two_views(vision, states, crops.tiling) for states, crops in zip(seen, made, strict=True)])


def _two_views(vision: Vision, states: torch.Tensor, tiling: tuple[int, int]) -> torch.Tensor:
    grid = (vision.sizes.grid, vision.sizes.grid)
    whole = stitch(torch.unflatten(states[1:], 1, grid), tiling, vision.sizes.overlap_margin)
    pooled = F.adaptive_avg_pool2d(whole.permute(2, 0, 1), grid)  # (D, grid, grid)
    return torch.cat([states[0], pooled.permute(1, 2, 0).flatten(0, 1)], dim=-1)


def make_pictures(vision: Vision, count: int, seed: int, folder: Path, report: Report) -> Pictures:
    """Draw and encode pictures in parts; parts that lie in the folder are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part-{number}.safetensors" for number in range(-(-count // PART))]
    for number, path in enumerate(paths):
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            save_file(_part(vision, np.random.default_rng([seed, number])), partial)
            partial.rename(path)
        report(min(count, (number + 1) * PART))
    parts = [load_file(path) for path in paths]
    whole = {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}
    scenes = [_from_codes(row) for row in whole.pop("scenes").tolist()]
    return Pictures(**whole, scenes=scenes)


def _part(vision: Vision, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    features, truths = list[torch.Tensor](), list[Drawn]()
    for _ in range(PART // 64):
        drawn = [draw(rng) for _ in range(64)]
        with torch.autocast("cpu", torch.bfloat16):
            features.append(encode(vision, [one.image for one in drawn]).to(torch.bfloat16))
        no_image = Image.new("RGB", (1, 1))  # a part's pictures would fill a gigabyte, and nobody needs them any more
        truths += [Drawn(no_image, one.scene, one.boxes) for one in drawn]
    return {"features": torch.cat(features), **truth_tensors(truths)}


def truth_tensors(truths: list[Drawn]) -> dict[str, torch.Tensor]:
    """All but the features that `Pictures` holds, scenes as codes."""
    boxes = np.full((len(truths), 2, 4), -1.0, dtype=np.float32)
    for index, one in enumerate(truths):
        boxes[index, : len(one.boxes)] = one.boxes
    owners = np.stack([_owners(one.boxes) for one in truths])
    targets = np.stack([_targets(one, mine) for one, mine in zip(truths, owners, strict=True)])
    return {
        "boxes": torch.from_numpy(boxes),
        "targets": torch.from_numpy(targets),
        "owners": torch.from_numpy(owners.clip(-1)),
        "scenes": torch.tensor([_to_codes(one.scene) for one in truths]),
    }


def _owners(boxes: np.ndarray) -> np.ndarray:
    """(GRID**2,) the nearest thing's index, -1 where none is near, -2 where two are as near."""
    y, x = (np.indices((GRID, GRID)).reshape(2, -1) + 0.5) / GRID
    if not len(boxes):
        return np.full(GRID**2, -1)
    distances = np.hypot(x[:, None] - boxes[:, 0], y[:, None] - boxes[:, 1])  # (GRID**2, things)
    nearest: np.ndarray = distances.argmin(1)
    ordered = np.sort(distances, 1)
    if len(boxes) > 1:
        nearest[ordered[:, 1] - ordered[:, 0] < UNDECIDED] = -2
    nearest[ordered[:, 0] > MAX_DISTANCE] = -1
    return nearest


def _targets(one: Drawn, owners: np.ndarray) -> np.ndarray:
    """(GRID**2, len(READOUTS)) classes."""
    nothing = [*thing_classes(None), 2]
    things = [[*thing_classes(thing), rank] for rank, thing in enumerate(one.scene.things)] if one.scene else []
    rows = np.array([*things, [IGNORED] * len(nothing), nothing])
    whole = [_BACKGROUNDS.index(one.scene.background), len(things)] if one.scene else [len(_BACKGROUNDS), 0]
    targets = np.concatenate([rows[owners], np.tile(whole, (GRID**2, 1))], axis=1)
    assert targets.shape[1] == len(READOUTS)
    return targets


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
