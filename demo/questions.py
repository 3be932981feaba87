"""Makes questions about a scene with their one right answer, by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import wordings as say
from scenes import COLORS, PLACES, SHAPES, Scene, Thing

NUMBERS = ("no", "one", "two")


@dataclass(frozen=True, slots=True)
class Question:
    """One user text with the answer expected."""

    kind: str
    text: str
    answer: str


Rng = np.random.Generator


def ask_about(scene: Scene, kind: str, rng: Rng) -> Question:
    """Ask a question of one kind of KINDS; the text is sometimes written carelessly."""
    text, answer = KINDS[kind](scene, rng)
    text = text.replace("{color}", pick(rng, ("color", "colour"))).replace("{image}", pick(rng, say.IMAGES))
    return Question(kind, careless(text, rng), answer)


def pick(rng: Rng, options: tuple[str, ...]) -> str:
    """Choose one of the options."""
    return options[int(rng.integers(len(options)))]


def careless(text: str, rng: Rng) -> str:
    """Now and then lower the case or drop the mark at the end."""
    text = text.lower() if rng.random() < 0.1 else text
    return text.rstrip(".?!") if rng.random() < 0.1 and len(text) > 3 else text


def describe(scene: Scene) -> str:
    """Say what the scene shows, things in reading order."""
    parts = [f"{a(thing.color + ' ' + thing.shape)} {thing.place}" for thing in scene.things]
    return f"I see {' and '.join(parts)} on a {scene.background} background."


def a(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _ask_color(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1 and (shape := absent(scene, SHAPES, "shape", rng)):
        return pick(rng, say.COLOR_OF).replace("{ref}", f"the {shape}"), f"I do not see {a(shape)}."
    thing = any_thing(scene, rng)
    refs = [f"the shape {thing.place}", f"the {thing.shape} {thing.place}"]
    refs += [f"the {thing.shape}"] * 5 * alone(scene, "shape", thing.shape)
    refs += ["the shape", "it", "this shape", f"this {thing.shape}"] * (len(scene.things) == 1)
    return pick(rng, say.COLOR_OF).replace("{ref}", pick(rng, tuple(refs))), f"It is {thing.color}."


def _ask_shape(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1 and (color := absent(scene, tuple(COLORS), "color", rng)):
        return _by_color(color, rng), f"I do not see anything {color}."
    thing = any_thing(scene, rng)
    answer = f"It is {a(thing.shape)}."
    if len(scene.things) == 1 and rng.random() < 0.3:
        return pick(rng, say.SHAPE_ALONE), answer
    if rng.random() < 0.3 or not alone(scene, "color", thing.color):
        return pick(rng, say.SHAPE_AT).replace("{place}", thing.place), answer
    return _by_color(thing.color, rng), answer


def _by_color(color: str, rng: Rng) -> str:
    if rng.random() < 0.4:
        return pick(rng, say.SHAPE_BY_COLOR).replace("{name}", color)
    ref = f"the {color} {pick(rng, ('shape', 'thing', 'object', 'one'))}"
    return pick(rng, say.SHAPE_OF).replace("{ref}", ref)


def _ask_number(scene: Scene, rng: Rng) -> tuple[str, str]:
    wording = pick(rng, say.COUNT_ALL)
    if rng.random() < 0.45:
        return wording.replace("{noun}", pick(rng, say.GENERAL_NOUNS)), _counted(len(scene.things), "shape")
    noun, count = _countable(scene, rng)
    return wording.replace("{noun}", f"{noun}s"), _counted(count, noun)


def _countable(scene: Scene, rng: Rng) -> tuple[str, int]:
    thing = any_thing(scene, rng)
    present = rng.random() < 0.6
    if rng.random() < 0.6:
        shape = thing.shape if present else pick(rng, SHAPES)
        return shape, sum(t.shape == shape for t in scene.things)
    color = thing.color if present else pick(rng, tuple(COLORS))
    return f"{color} shape", sum(t.color == color for t in scene.things)


def _counted(count: int, noun: str) -> str:
    return f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {noun}{'' if count == 1 else 's'}."


def _ask_where(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1:
        ref, absence = _absence(scene, rng)
        return pick(rng, say.WHERE_IS).replace("{ref}", ref), absence
    thing = any_thing(scene, rng)
    refs = [f"the {thing.color} {thing.shape}"] * 3
    refs += [f"the {thing.shape}"] * 3 * alone(scene, "shape", thing.shape)
    refs += [f"the {thing.color} shape", f"the {thing.color} one"] * alone(scene, "color", thing.color)
    refs += ["it", "the shape"] * (len(scene.things) == 1)
    return pick(rng, say.WHERE_IS).replace("{ref}", pick(rng, tuple(refs))), f"It is {thing.place}."


def _absence(scene: Scene, rng: Rng) -> tuple[str, str]:
    color, shape = other_pair(scene, rng)
    noun = f"{color} {shape}"
    if rng.random() < 0.4 and (missing := absent(scene, SHAPES, "shape", rng)):
        noun = missing
    return f"the {noun}", f"I do not see {a(noun)}."


def _ask_there(scene: Scene, rng: Rng) -> tuple[str, str]:
    present = rng.random() < 0.5
    ref, right = _claim(scene, present, rng)
    return pick(rng, say.IS_THERE).replace("{ref}", ref), "Yes." if right else "No."


def _claim(scene: Scene, present: bool, rng: Rng) -> tuple[str, bool]:
    thing, chance = any_thing(scene, rng), rng.random()
    if chance < 0.5:
        color, shape = (thing.color, thing.shape) if present else other_pair(scene, rng)
        return a(f"{color} {shape}"), any((t.color, t.shape) == (color, shape) for t in scene.things)
    if chance < 0.75:
        shape = thing.shape if present else pick(rng, SHAPES)
        return a(shape), any(t.shape == shape for t in scene.things)
    color = thing.color if present else pick(rng, tuple(COLORS))
    ref = f"anything {color}" if rng.random() < 0.5 else a(f"{color} shape")
    return ref, any(t.color == color for t in scene.things)


def other_pair(scene: Scene, rng: Rng) -> tuple[str, str]:
    """A pair that is not there, mostly one that shares its color or shape with something that is."""
    taken = {(t.color, t.shape) for t in scene.things}
    thing = any_thing(scene, rng)
    color, shape = pick(rng, tuple(COLORS)), pick(rng, SHAPES)
    crossed = (scene.things[0].color, scene.things[-1].shape)
    pairs = [(thing.color, shape), (color, thing.shape), (color, shape), crossed, crossed]
    free = [pair for pair in pairs if pair not in taken]
    return free[int(rng.integers(len(free)))] if free else other_pair(scene, rng)


def _ask_background(scene: Scene, rng: Rng) -> tuple[str, str]:
    return pick(rng, say.BACKGROUND), f"The background is {scene.background}."


def _ask_description(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.6:
        return pick(rng, say.DESCRIBE), describe(scene)
    start = pick(rng, say.DESCRIBE_START)
    words = f"{start}{pick(rng, say.DESCRIBE_VERB)} {pick(rng, ('the', 'this', 'this', 'my'))} {{image}}"
    mark = "?" if start.startswith(("C", "W")) else "."
    text = f"{words}{pick(rng, say.DESCRIBE_END)}{mark}"
    return text[0].upper() + text[1:], describe(scene)


def any_thing(scene: Scene, rng: Rng) -> Thing:
    """One of the things."""
    return scene.things[int(rng.integers(len(scene.things)))]


def alone(scene: Scene, feature: str, value: str) -> bool:
    """Whether just one thing has this shape or color."""
    return [getattr(thing, feature) for thing in scene.things].count(value) == 1


def absent(scene: Scene, values: tuple[str, ...], feature: str, rng: Rng) -> str:
    """A shape or color that no thing has."""
    taken = {getattr(thing, feature) for thing in scene.things}
    return pick(rng, tuple(value for value in values if value not in taken))


Asker = Callable[[Scene, Rng], tuple[str, str]]
KINDS: dict[str, Asker] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "number": _ask_number,
    "where": _ask_where,
    "there": _ask_there,
    "background": _ask_background,
    "describe": _ask_description,
}
assert len(PLACES) == 9, "wordings name places as the scenes do"
