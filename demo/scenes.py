"""Draws the demo's pictures: one or two coloured shapes on a plain background, and pictures that are no such scene."""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rgb: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "star")
# Several tints a colour, the pure names of CSS among them, so that other people's drawings are recognized too.
COLORS: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 40, 40), (235, 20, 30), (214, 39, 40)),
    "orange": ((255, 165, 0), (245, 130, 30), (255, 140, 0), (240, 150, 40)),
    "yellow": ((255, 255, 0), (245, 220, 50), (255, 230, 0), (250, 240, 70)),
    "green": ((0, 128, 0), (40, 170, 70), (0, 220, 0), (60, 180, 75)),
    "blue": ((0, 0, 255), (50, 90, 220), (30, 110, 240), (31, 119, 200)),
    "purple": ((128, 0, 128), (140, 60, 180), (120, 40, 160), (150, 70, 190)),
    "pink": ((255, 192, 203), (255, 105, 180), (245, 150, 190), (250, 130, 180)),
    "brown": ((150, 75, 20), (139, 69, 19), (120, 75, 45), (110, 60, 25)),
}
BACKGROUNDS: dict[str, tuple[Rgb, ...]] = {
    "white": ((255, 255, 255), (250, 250, 250), (246, 247, 248)),
    "gray": ((128, 128, 128), (150, 150, 150), (165, 165, 168)),
    "black": ((0, 0, 0), (15, 15, 18), (30, 30, 30)),
    "cream": ((255, 243, 205), (250, 235, 200), (245, 230, 190)),
}
# In reading order, which is also the order in which a description names things.
PLACES: dict[str, Point] = {
    "at the top left": (0.25, 0.25),
    "at the top": (0.5, 0.25),
    "at the top right": (0.75, 0.25),
    "on the left": (0.25, 0.5),
    "in the center": (0.5, 0.5),
    "on the right": (0.75, 0.5),
    "at the bottom left": (0.25, 0.75),
    "at the bottom": (0.5, 0.75),
    "at the bottom right": (0.75, 0.75),
}
PLACE_JITTER = 0.03
MIN_RADIUS, MAX_RADIUS = 0.1, 0.4


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape; `place` is a key of PLACES."""

    shape: str
    color: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows; `things` in reading order. No two share both shape and colour."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a thing was drawn, in fractions of the picture's sides."""

    x: float
    y: float
    radius: float


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene at random; two things mostly differ in both shape and colour."""
    count = int(rng.integers(1, 3))
    places = sorted(rng.choice(len(PLACES), count, replace=False))
    shapes, colors = _pick(rng, SHAPES, count, 0.18), _pick(rng, tuple(COLORS), count, 0.15)
    if count == 2 and shapes[0] == shapes[1]:
        colors = _pick(rng, tuple(COLORS), count, 0.0)
    names = tuple(PLACES)
    things = tuple(Thing(s, c, names[p]) for s, c, p in zip(shapes, colors, places, strict=True))
    return Scene(things, str(rng.choice(list(BACKGROUNDS))))


def _pick(rng: np.random.Generator, names: tuple[str, ...], count: int, same: float) -> list[str]:
    picked = [names[i] for i in rng.choice(len(names), count, replace=False)]
    return [picked[0]] * count if rng.random() < same else picked


def place_things(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Choose centers and radii such that things neither touch nor leave the picture by more than an edge."""
    centers = [_jittered(PLACES[thing.place], rng) for thing in scene.things]
    room = [_room(index, centers) for index in range(len(centers))]
    return [Placed(x, y, float(rng.uniform(MIN_RADIUS, r))) for (x, y), r in zip(centers, room, strict=True)]


def _jittered(place: Point, rng: np.random.Generator) -> Point:
    dx, dy = rng.uniform(-PLACE_JITTER, PLACE_JITTER, 2)
    return place[0] + float(dx), place[1] + float(dy)


def _room(index: int, centers: list[Point]) -> float:
    x, y = centers[index]
    edge = min(x, y, 1 - x, 1 - y) + 0.01
    gaps = [0.43 * math.dist((x, y), other) for i, other in enumerate(centers) if i != index]
    return max(MIN_RADIUS + 0.005, min([edge, MAX_RADIUS, *gaps]))


def draw_scene(scene: Scene, rng: np.random.Generator) -> tuple[Image.Image, list[Placed]]:
    """Draw the scene as a picture of 64 to 400 pixels, with noise and JPEG artefacts in part of the cases."""
    width, height = _canvas_size(rng)
    placed = place_things(scene, rng)
    zoom = 1 if rng.random() < 0.15 else 2
    image = Image.new("RGB", (width * zoom, height * zoom), _tint(BACKGROUNDS[scene.background], 5, rng))
    draw = ImageDraw.Draw(image)
    for thing, spot in zip(scene.things, placed, strict=True):
        _draw_thing(draw, thing, spot, image.size, rng)
    image = image if zoom == 1 else image.resize((width, height), Image.Resampling.BOX)
    return _worn(image, rng), placed


def _canvas_size(rng: np.random.Generator) -> tuple[int, int]:
    side = int(math.exp(rng.uniform(math.log(64), math.log(400))))
    if rng.random() < 0.7:
        return side, side
    other = max(48, int(side * rng.uniform(0.66, 1.0)))
    return (side, other) if rng.random() < 0.6 else (other, side)


def _tint(tints: tuple[Rgb, ...], spread: int, rng: np.random.Generator) -> Rgb:
    base = np.array(tints[int(rng.integers(len(tints)))]) + rng.integers(-spread, spread + 1, 3)
    red, green, blue = (int(v) for v in base.clip(0, 255))
    return red, green, blue


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, spot: Placed, size: tuple[int, int], rng: np.random.Generator
) -> None:
    cx, cy = spot.x * size[0], spot.y * size[1]
    radius = spot.radius * min(size)
    fill = _tint(COLORS[thing.color], 9, rng)
    if thing.shape == "circle":
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=fill)
        return
    turn = float(rng.uniform(-12, 12)) if rng.random() < 0.6 else 0.0
    draw.polygon([(cx + radius * x, cy + radius * y) for x, y in _outline(thing.shape, turn)], fill=fill)


def _outline(shape: str, turn_degrees: float) -> list[Point]:
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    first = -135.0 if shape == "square" else -90.0
    points = []
    for corner in range(corners):
        angle = math.radians(first + turn_degrees + 360 * corner / corners)
        reach = 0.45 if shape == "star" and corner % 2 else 1.1
        points.append((reach * math.cos(angle), reach * math.sin(angle)))
    return points


def _worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.5:
        noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * rng.uniform(1, 9)
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return _as_jpeg(image, int(rng.integers(60, 96))) if rng.random() < 0.6 else image


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def draw_other(rng: np.random.Generator) -> Image.Image:
    """Draw a picture that is no scene: noise, gradient, blurred colours, stripes, checks, clutter or a blank."""
    makers: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
        _noise, _gradient, _blurred, _blurred, _stripes, _checks, _clutter, _blank,
    )  # fmt: skip
    pixels = makers[int(rng.integers(len(makers)))](rng).clip(0, 255).astype(np.uint8)
    return _worn(Image.fromarray(pixels).resize(_canvas_size(rng), Image.Resampling.BICUBIC), rng)


def _noise(rng: np.random.Generator) -> np.ndarray:
    side = int(rng.choice([8, 16, 32, 64, 128]))
    return rng.integers(0, 256, (side, side, 3)).astype(np.float32)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:96, 0:96] / 95.0
    start, across, down = rng.uniform(0, 255, 3), rng.uniform(-255, 255, 3), rng.uniform(-255, 255, 3)
    return np.asarray(start + across * x[..., None] + down * y[..., None])


def _blurred(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(3, 10))
    small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
    large = small.resize((96, 96), Image.Resampling.BICUBIC)
    return np.asarray(large.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 5)))), dtype=np.float32)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:128, 0:128] / 127.0
    angle, waves = rng.uniform(0, math.pi), rng.uniform(2, 16)
    wave = np.sin(2 * math.pi * waves * (x * math.cos(angle) + y * math.sin(angle)))[..., None]
    wave = np.sign(wave) if rng.random() < 0.5 else wave
    return np.asarray(rng.uniform(0, 255, 3) * (0.5 + 0.5 * wave) + rng.uniform(0, 255, 3) * (0.5 - 0.5 * wave))


def _checks(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(3, 13))
    odd = (np.indices((cells, cells)).sum(0) % 2)[..., None]
    return np.kron(odd * rng.uniform(0, 255, 3) + (1 - odd) * rng.uniform(0, 255, 3), np.ones((12, 12, 1)))


def _clutter(rng: np.random.Generator) -> np.ndarray:
    image = Image.new("RGB", (128, 128), _random_color(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(12, 40))):
        x, y, w, h = (float(v) for v in rng.uniform((-20, -20, 5, 5), (118, 118, 60, 60)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=_random_color(rng))
    return np.asarray(image, dtype=np.float32)


def _blank(rng: np.random.Generator) -> np.ndarray:
    return np.full((64, 64, 3), _random_color(rng), dtype=np.float32)


def _random_color(rng: np.random.Generator) -> Rgb:
    red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
    return red, green, blue


EXAMPLES: dict[str, Scene] = {
    "red-circle.png": Scene((Thing("circle", "red", "in the center"),), "white"),
    "yellow-star.png": Scene((Thing("star", "yellow", "at the top right"),), "black"),
    "purple-triangle.jpg": Scene((Thing("triangle", "purple", "on the left"),), "cream"),
    "blue-square-and-yellow-star.jpg": Scene(
        (Thing("square", "blue", "at the top left"), Thing("star", "yellow", "at the bottom right")), "gray"
    ),
    "green-triangle-and-pink-circle.png": Scene(
        (Thing("triangle", "green", "on the left"), Thing("circle", "pink", "on the right")), "white"
    ),
}


def draw_example(scene: Scene, seed: int, side: int = 256) -> Image.Image:
    """Draw a scene in its colours' plainest tints, without noise, `side` pixels square."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (3 * side, 3 * side), BACKGROUNDS[scene.background][0])
    draw = ImageDraw.Draw(image)
    for thing, spot in zip(scene.things, place_things(scene, rng), strict=True):
        larger = Placed(spot.x, spot.y, max(spot.radius, 0.17))
        _draw_thing(draw, thing, larger, image.size, rng)
    return image.resize((side, side), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo/images"), help="folder for the example pictures")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for seed, (name, scene) in enumerate(EXAMPLES.items()):
        draw_example(scene, seed).save(out / name, quality=88)
    gradient = Image.fromarray(_gradient(np.random.default_rng(3)).clip(0, 255).astype(np.uint8))
    gradient.save(out / "no-scene.png")


if __name__ == "__main__":
    main()
