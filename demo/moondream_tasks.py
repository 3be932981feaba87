"""Makes what the demo Moondream is asked: captions, things to find, thoughts, conversations about a given picture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import wordings as say
import words
from conversations import Course, Exchange, Talker
from questions import NUMBERS, Rng, a, careless, describe, pick
from scenes import COLORS, SHAPES, Scene, Thing, sample_scene

GENERAL = ("shape", "object", "thing")
ARTICLES = ("", "", "", "", "", "", "the ", "a ")
STRANGE = tuple(word for word in words.THINGS if word not in (*COLORS, *SHAPES))
WHOLE_PICTURE = ("number", "describe")
DESCRIBE_MORE = ("Describe this", "Describe this.", "Describe it.", "Describe what you see.", "Caption this.")
COLOR_HERE = ("What {color} is this?", "What {color} is it?", "Which {color} is this?", "What {color} is here?")
SHAPE_HERE = ("What shape is this?", "What shape is it?", "Which shape is this?", "Which shape is here?")
WHAT_IS_HERE = ("What is this?", "What is here?", "What do you see here?", "What is at this place?", "What is it?")
TURNS = (1, 2, 2, 3, 4, 6, 10)  # how long conversations are, each as often


@dataclass(frozen=True, slots=True)
class Sought:
    """What to find in a picture, and the indices of the things that fit, in reading order."""

    phrase: str
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Thought:
    """What is thought before an answer; a thing that is looked at stands between the two texts, with its centre."""

    before: str
    thing: int | None = None
    after: str = ""


def caption(scene: Scene | None, length: str) -> str:
    """Describe a scene in a few words, a sentence, or several sentences."""
    if scene is None:
        return say.ONLY_SHAPES
    if length == "normal":
        return describe(scene)
    names = [f"{thing.color} {thing.shape}" for thing in scene.things]
    if length == "short":
        return _sentence(" and ".join(a(name) for name in names))
    count = len(names)
    verb, noun = ("is", "shape") if count == 1 else ("are", "shapes")
    places = [_sentence(f"{a(name)} is {thing.place}") for name, thing in zip(names, scene.things, strict=True)]
    first = f"There {verb} {NUMBERS[count]} {noun} in the picture."
    return " ".join([first, *places, f"The background is {scene.background}."])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def sought(scene: Scene | None, rng: Rng) -> Sought:
    """Ask for something that may be there, once or twice, or not."""
    color, shape = _wanted(scene, rng)
    is_strange = color is None and shape is None and rng.random() < 0.4
    noun = pick(rng, STRANGE) if is_strange else shape or ""
    found = () if is_strange else _fitting(scene, color, shape)
    phrase = f"{color or ''} {noun or pick(rng, GENERAL)}".strip()
    phrase = f"{phrase}s" if rng.random() < 0.25 else phrase
    phrase = pick(rng, ARTICLES) + phrase
    phrase = phrase.capitalize() if rng.random() < 0.08 else phrase
    return Sought(phrase, found)


def _wanted(scene: Scene | None, rng: Rng) -> tuple[str | None, str | None]:
    """A colour and a shape to look for, either from the scene (perhaps from two things) or from anywhere."""
    things = scene.things if scene else ()
    colors = tuple(thing.color for thing in things) if things and rng.random() < 0.75 else tuple(COLORS)
    shapes = tuple(thing.shape for thing in things) if things and rng.random() < 0.75 else SHAPES
    chance, thing = rng.random(), things[int(rng.integers(len(things)))] if things else None
    color, shape = (
        (thing.color, thing.shape) if thing and rng.random() < 0.4 else (pick(rng, colors), pick(rng, shapes))
    )
    if chance < 0.2:
        return None, None
    return (None, shape) if chance < 0.45 else (color, None) if chance < 0.6 else (color, shape)


def _fitting(scene: Scene | None, color: str | None, shape: str | None) -> tuple[int, ...]:
    things = scene.things if scene else ()
    return tuple(i for i, thing in enumerate(things) if color in (None, thing.color) and shape in (None, thing.shape))


def ask_here(thing: Thing, rng: Rng) -> tuple[str, str]:
    """Ask about the place that a thing covers."""
    chance = rng.random()
    if chance < 0.4:
        text, answer = pick(rng, WHAT_IS_HERE), f"It is {a(thing.color + ' ' + thing.shape)}."
    elif chance < 0.7:
        text, answer = pick(rng, COLOR_HERE).replace("{color}", pick(rng, ("color", "colour"))), f"It is {thing.color}."
    else:
        text, answer = pick(rng, SHAPE_HERE), f"It is {a(thing.shape)}."
    return careless(text, rng), answer


def thought(exchange: Exchange, meant: Thing | None, is_named: bool) -> Thought:
    """What to think before the answer: `meant` is the thing that the question speaks of, if it is there."""
    scene = exchange.scene
    if exchange.kind == "other picture":
        return Thought("I see no simple shapes.")
    if exchange.kind == "no picture":
        return Thought("There is no picture.")
    if scene is None:
        return Thought("I need no picture for this.")
    if exchange.kind == "background":
        return Thought("I look at the background.")
    if exchange.kind in WHOLE_PICTURE:
        return Thought("I look at the whole picture.")
    if is_named and meant is None:
        return Thought("I look for it and do not find it.")
    meant = scene.things[0] if len(scene.things) == 1 else meant
    if meant is None:
        return Thought("I look at the whole picture.")
    return Thought("I look at", scene.things.index(meant), f" the {meant.color} {meant.shape}")


class Asker(Talker):
    """Samples what is asked about a given picture, or about none."""

    def exchange(self, course: Course, kind: str, picture: int | None) -> Exchange:
        """As any talker's, with a few more ways to ask for a description."""
        made = Talker.exchange(self, course, kind, picture)
        is_other = kind == "describe" and self.rng.random() < 0.08
        return replace(made, user=careless(pick(self.rng, DESCRIBE_MORE), self.rng)) if is_other else made

    def turns(self, picture: int | None) -> list[Exchange]:
        """A conversation; with a picture, what was said before it came is not learned."""
        if picture is not None and self.rng.random() < 0.2:
            return self._introduced(picture)
        length = int(self.rng.choice(TURNS))
        course, arrival = Course(), length if picture is None else self._arrival(length)
        lost = self._lost_scene() if arrival and picture is not None and self.rng.random() < 0.2 else None
        for turn in range(length):
            if lost and turn < arrival and self.rng.random() < 0.7:
                course.exchanges.append(self._about_lost(lost))
                continue
            course = self._shown(course, picture if turn == arrival else None)
            course.exchanges.append(self.exchange(course, self._kind(course), None))
        return self._learned(course.exchanges, 0 if picture is None else arrival)

    def _arrival(self, length: int) -> int:
        return 0 if self.rng.random() < 0.5 else int(self.rng.integers(0, min(length, 5)))

    def _introduced(self, picture: int) -> list[Exchange]:
        course = Course()
        for kind in ("name told", "name asked"):
            course.exchanges.append(self.exchange(course, kind, None))
        course = self._shown(course, picture)
        kinds = [("describe" if course.scene else "other picture")] * 2
        for kind in kinds + [self._kind(course) for _ in range(int(self.rng.integers(0, 4)))]:
            course.exchanges.append(self.exchange(course, kind, None))
        return self._learned(course.exchanges, 2)

    def _learned(self, exchanges: list[Exchange], first: int) -> list[Exchange]:
        return [replace(one, is_learned=one.is_learned and turn >= first) for turn, one in enumerate(exchanges)]


def corpus(count: int, seed: int) -> list[str]:
    """User texts and answers for the tokenizer."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene | None] = [None, *(sample_scene(rng) for _ in range(255))]
    asker = Asker(scenes, rng)
    exchanges = [turn for i in range(count) for turn in asker.turns(i % 256 if i % 3 else None)]
    spoken = [text for turn in exchanges for text in (turn.user, turn.answer)]
    spoken += [caption(scene, length) for scene in scenes for length in ("short", "long")]
    spoken += [f" {sought(scene, rng).phrase}" for scene in scenes * 8]
    thoughts = [thought(turn, None, False) for turn in exchanges]
    spoken += [text for one in thoughts for text in (one.before, one.after) if text]
    nouns = [f" {word} {word.capitalize()}" for word in words.THINGS + words.WORLD_PLACES]
    return [*spoken, *nouns, *["caption", "query", "detect", "point", "short", "normal", "long"] * count]
