"""Makes questions about a scene in Japanese with their one right answer, of the same kinds as `questions.py`."""

from __future__ import annotations

from collections.abc import Callable

import japanese_wordings as say
from questions import Question, Rng, absent, alone, any_thing, other_pair, pick
from scenes import COLORS, SHAPES, Scene


def ask_about(scene: Scene, kind: str, rng: Rng) -> Question:
    """Ask a question of one kind of `questions.KINDS`; the text is sometimes written carelessly."""
    text, answer = _KINDS[kind](scene, rng)
    return Question(kind, careless(text.replace("{image}", pick(rng, say.IMAGES)), rng), answer)


def careless(text: str, rng: Rng) -> str:
    """Now and then drop or narrow the mark at the end, or ask without it."""
    if rng.random() < 0.1 and len(text) > 3:
        return text.rstrip("。？！")
    return text.replace("？", "?") if rng.random() < 0.08 else text


def describe(scene: Scene) -> str:
    """Say what the scene shows, things in reading order."""
    parts = [f"{say.PLACES[thing.place]}に{colored(thing.color, thing.shape)}" for thing in scene.things]
    return f"{say.COLORS[scene.background][1]}背景の{'、'.join(parts)}があります。"


def colored(color: str, shape: str) -> str:
    """A shape with its color before it."""
    return f"{say.COLORS[color][1]}{say.SHAPES[shape]}"


def _shape(shape: str, rng: Rng) -> str:
    return pick(rng, say.OTHER_SHAPES[shape]) if rng.random() < 0.2 else say.SHAPES[shape]


def _color(color: str, rng: Rng) -> str:
    return say.OTHER_COLORS[color] if rng.random() < 0.15 else say.COLORS[color][1]


def _place(place: str, rng: Rng) -> str:
    return "真ん中" if place == "in the center" and rng.random() < 0.3 else say.PLACES[place]


def _ask_color(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1 and (shape := absent(scene, SHAPES, "shape", rng)):
        return pick(rng, say.COLOR_OF).replace("{ref}", say.SHAPES[shape]), f"{say.SHAPES[shape]}は見えません。"
    thing = any_thing(scene, rng)
    place, shape = _place(thing.place, rng), _shape(thing.shape, rng)
    refs = [f"{place}の図形", f"{place}の{shape}"] + [shape] * 5 * alone(scene, "shape", thing.shape)
    refs += ["図形", "これ", "この図形", f"この{shape}"] * (len(scene.things) == 1)
    return pick(rng, say.COLOR_OF).replace("{ref}", pick(rng, tuple(refs))), f"{say.COLORS[thing.color][0]}です。"


def _ask_shape(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1 and (color := absent(scene, tuple(COLORS), "color", rng)):
        return _by_color(color, rng), f"{say.COLORS[color][1]}ものは見えません。"
    thing = any_thing(scene, rng)
    answer = f"{say.SHAPES[thing.shape]}です。"
    if len(scene.things) == 1 and rng.random() < 0.3:
        return pick(rng, say.SHAPE_ALONE), answer
    if rng.random() < 0.3 or not alone(scene, "color", thing.color):
        return pick(rng, say.SHAPE_AT).replace("{place}", _place(thing.place, rng)), answer
    return _by_color(thing.color, rng), answer


def _by_color(color: str, rng: Rng) -> str:
    return pick(rng, say.SHAPE_OF).replace("{ref}", f"{_color(color, rng)}{pick(rng, ('図形', '図形', 'もの', '形'))}")


def _ask_number(scene: Scene, rng: Rng) -> tuple[str, str]:
    wording, chance = pick(rng, say.COUNT_ALL), rng.random()
    if chance < 0.45:
        return wording.replace("{noun}", pick(rng, say.GENERAL_NOUNS)), _counted(len(scene.things), "図形")
    thing, present = any_thing(scene, rng), rng.random() < 0.6
    if chance < 0.78:
        shape = thing.shape if present else pick(rng, SHAPES)
        count = sum(t.shape == shape for t in scene.things)
        return wording.replace("{noun}", _shape(shape, rng)), _counted(count, say.SHAPES[shape])
    color = thing.color if present else pick(rng, tuple(COLORS))
    count = sum(t.color == color for t in scene.things)
    return wording.replace("{noun}", f"{_color(color, rng)}図形"), _counted(count, f"{say.COLORS[color][1]}図形")


def _counted(count: int, noun: str) -> str:
    return f"{noun}は{say.NUMBERS[count]}あります。" if count else f"{noun}はありません。"


def _ask_where(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1:
        color, shape = other_pair(scene, rng)
        ref = colored(color, shape)
        if rng.random() < 0.4 and (missing := absent(scene, SHAPES, "shape", rng)):
            ref = say.SHAPES[missing]
        return pick(rng, say.WHERE_IS).replace("{ref}", ref), f"{ref}は見えません。"
    thing = any_thing(scene, rng)
    color, shape = _color(thing.color, rng), _shape(thing.shape, rng)
    refs = [f"{color}{shape}"] * 3 + [shape] * 3 * alone(scene, "shape", thing.shape)
    refs += [f"{color}図形", f"{color}もの"] * alone(scene, "color", thing.color)
    refs += ["それ", "図形"] * (len(scene.things) == 1)
    return pick(rng, say.WHERE_IS).replace("{ref}", pick(rng, tuple(refs))), f"{say.PLACES[thing.place]}にあります。"


def _ask_there(scene: Scene, rng: Rng) -> tuple[str, str]:
    ref, right = _claim(scene, rng.random() < 0.5, rng)
    return pick(rng, say.IS_THERE).replace("{ref}", ref), "はい、あります。" if right else "いいえ、ありません。"


def _claim(scene: Scene, present: bool, rng: Rng) -> tuple[str, bool]:
    thing, chance = any_thing(scene, rng), rng.random()
    if chance < 0.5:
        color, shape = (thing.color, thing.shape) if present else other_pair(scene, rng)
        return f"{_color(color, rng)}{_shape(shape, rng)}", any(
            (t.color, t.shape) == (color, shape) for t in scene.things
        )
    if chance < 0.75:
        shape = thing.shape if present else pick(rng, SHAPES)
        return _shape(shape, rng), any(t.shape == shape for t in scene.things)
    color = thing.color if present else pick(rng, tuple(COLORS))
    ref = f"{_color(color, rng)}{pick(rng, ('もの', '図形'))}"
    return ref, any(t.color == color for t in scene.things)


def _ask_background(scene: Scene, rng: Rng) -> tuple[str, str]:
    return pick(rng, say.BACKGROUND), f"背景は{say.COLORS[scene.background][0]}です。"


def _ask_description(scene: Scene, rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.6:
        return pick(rng, say.DESCRIBE), describe(scene)
    asked = pick(rng, say.DESCRIBE_START) + "を" + pick(rng, say.DESCRIBE_HOW) + pick(rng, say.DESCRIBE_VERB)
    return asked, describe(scene)


_KINDS: dict[str, Callable[[Scene, Rng], tuple[str, str]]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "number": _ask_number,
    "where": _ask_where,
    "there": _ask_there,
    "background": _ask_background,
    "describe": _ask_description,
}
