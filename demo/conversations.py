"""Makes whole conversations: small talk, names remembered, pictures that arrive at some turn, questions about them."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

import japanese_wordings
import numpy as np
import wordings as say
import words
from questions import KINDS, Rng, ask_about, careless, pick
from scenes import Scene, sample_scene

TALK_KINDS = ("name told", "name asked", "name missing", "talk", "other question")
ALL_KINDS = (*KINDS, "no picture", "other picture", *TALK_KINDS)
EASY = ("no picture", "other picture", "name missing", "talk", "other question")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the user says, with which picture (an index into the pool), and the one right answer."""

    kind: str
    user: str
    answer: str
    picture: int | None = None
    is_learned: bool = True  # False where the answer speaks of a picture that is gone
    scene: Scene | None = None  # what a question about a scene is about


@dataclass(slots=True)
class Course:
    """How far a conversation has come."""

    name: str | None = None
    scene: Scene | None = None
    has_picture: bool = False
    exchanges: list[Exchange] = field(default_factory=list)

    def was_asked_name(self) -> bool:
        """Whether the last answer asked for the user's name."""
        asked = (say.ASK_NAME, japanese_wordings.ASK_NAME)
        return bool(self.exchanges) and self.exchanges[-1].answer in asked


class Talker:
    """Samples conversations; `weights` say how often each kind of question comes and may be changed at any time."""

    kinds: tuple[str, ...] = ALL_KINDS

    def __init__(self, scenes: list[Scene | None], rng: Rng) -> None:
        self.scenes, self.rng = scenes, rng
        self.weights = dict.fromkeys(self.kinds, 1.0)
        self.pairs = [index for index, scene in enumerate(scenes) if scene and len(scene.things) > 1]
        self.twins = [index for index in self.pairs if _is_alike(scenes[index])]
        self.others = [index for index, scene in enumerate(scenes) if scene is None]
        self.pair_share = self.other_share = 0.0

    def picture(self) -> int:
        """Choose a picture: `other_share` of the choices show no scene, of the rest `pair_share` two things.

        These are harder than one, many of them being alike.
        """
        if self.other_share and self.rng.random() < self.other_share:
            return self.others[int(self.rng.integers(len(self.others)))]
        if self.rng.random() < self.pair_share:
            chosen = self.twins if self.rng.random() < 0.3 else self.pairs
            return chosen[int(self.rng.integers(len(chosen)))]
        return int(self.rng.integers(len(self.scenes)))

    def single(self, picture: int | None, kind: str | None = None) -> Exchange:
        """One first turn, with or without a picture."""
        course = self._course(picture)
        return self.exchange(course, kind or self._kind(course), picture)

    def conversation(self, length: int) -> list[Exchange]:
        """Up to ten exchanges; mostly a picture arrives in one of the first turns and stays."""
        course = Course()
        arrival = int(self.rng.integers(0, max(1, min(length, 5)))) if self.rng.random() < 0.9 else length
        lost = self._lost_scene() if arrival and self.rng.random() < 0.15 else None
        for turn in range(length):
            if lost and turn < arrival and self.rng.random() < 0.7:
                course.exchanges.append(self._about_lost(lost))
                continue
            picture = self.picture() if turn == arrival else None
            course = self._shown(course, picture)
            course.exchanges.append(self.exchange(course, self._kind(course), picture))
        return course.exchanges

    def shown(self, picture: int, described_share: float, named_share: float) -> list[Exchange]:
        """A conversation about a picture from its first turn on: two questions, between them perhaps a name."""
        course = self._course(picture)
        is_described = course.scene is not None and self.rng.random() < described_share
        kinds = ["describe"] if is_described else [self._kind(course)]
        kinds += ["name told"] if self.rng.random() < named_share else []
        course.exchanges += [self.exchange(course, kind, None if turn else picture) for turn, kind in enumerate(kinds)]
        for kind in (self._kind(course), *["name asked"] * (course.name is not None)):
            course.exchanges.append(self.exchange(course, kind, None))
        return course.exchanges

    def introduction(self) -> list[Exchange]:
        """The README's conversation: a name, is it remembered, a picture, the same again, and what may follow."""
        course = Course()
        told = "name missing" if self.rng.random() < 0.1 else "name told"
        for kind in (told, "name asked" if told == "name told" else "name missing"):
            course.exchanges.append(self.exchange(course, kind, None))
        picture = self.picture()
        for shown in (picture, None):
            course = self._shown(course, shown)
            kind = "describe" if course.scene else "other picture"
            course.exchanges.append(self.exchange(course, kind, shown))
        for _ in range(int(self.rng.integers(0, 4))):
            course.exchanges.append(self.exchange(course, self._kind(course), None))
        return course.exchanges

    def exchange(self, course: Course, kind: str, picture: int | None) -> Exchange:
        """The next exchange of one kind; remembers a name that is told."""
        if kind in KINDS:
            assert course.scene
            question = ask_about(course.scene, kind, self.rng)
            return Exchange(kind, question.text, question.answer, picture, scene=course.scene)
        if kind in ("no picture", "other picture"):
            about = pick(self.rng, tuple(KINDS))
            question = ask_about(sample_scene(self.rng), about, self.rng)
            answer = say.NO_PICTURE if kind == "no picture" else say.ONLY_SHAPES
            return Exchange(kind, question.text, answer, picture)
        text, answer = self._talk(course, kind)
        return Exchange(kind, text, answer, picture)

    def _course(self, picture: int | None) -> Course:
        return self._shown(Course(), picture)

    def _shown(self, course: Course, picture: int | None) -> Course:
        if picture is not None:
            course.scene, course.has_picture = self.scenes[picture], True
        return course

    def _kind(self, course: Course) -> str:
        about = tuple(KINDS) if course.scene else ("other picture",) if course.has_picture else ("no picture",)
        kinds = about + self._talk_kinds(course)
        shares = np.array([self.weight(kind) * (0.5 if kind in EASY else 1.0) for kind in kinds])
        return str(self.rng.choice(kinds, p=shares / shares.sum()))

    def weight(self, kind: str) -> float:
        """How often a kind is wanted now, beside the others."""
        return self.weights[kind]

    def _talk_kinds(self, course: Course) -> tuple[str, ...]:
        if course.was_asked_name():
            return ("name told",) * 3 + ("name missing",)
        name = ("name asked", "name asked", "name told") if course.name else ("name told", "name missing")
        return (*name, "talk", "other question")

    def _talk(self, course: Course, kind: str) -> tuple[str, str]:
        if kind == "name told":
            return self._told(course)
        if kind == "name asked":
            return careless(pick(self.rng, say.ASK_FOR_NAME), self.rng), f"Your name is {course.name}."
        if kind == "name missing":
            if self.rng.random() < 0.5:
                return careless(pick(self.rng, say.ASK_FOR_NAME), self.rng), say.UNKNOWN_NAME
            return pick(self.rng, say.TELL_NO_NAME), say.ASK_NAME
        if kind == "talk":
            answer = pick(self.rng, tuple(say.TALK))
            return careless(pick(self.rng, say.TALK[answer]), self.rng), answer
        return careless(off_topic(self.rng), self.rng), say.ONLY_SHAPES

    def _told(self, course: Course) -> tuple[str, str]:
        wordings: tuple[str, ...] = say.RENAME + say.TELL_NAME if course.name else say.TELL_NAME
        wordings = say.ANSWER_NAME if course.was_asked_name() else wordings
        course.name = self.make_name()
        return pick(self.rng, wordings).replace("{name}", course.name), f"Hello {course.name}! Nice to meet you."

    def make_name(self) -> str:
        """A name that somebody might tell."""
        return make_name(self.rng)

    def _lost_scene(self) -> Scene:
        return sample_scene(self.rng)

    def _about_lost(self, scene: Scene) -> Exchange:
        question = ask_about(scene, pick(self.rng, tuple(KINDS)), self.rng)
        return Exchange(question.kind, question.text, question.answer, is_learned=False)


def _is_alike(scene: Scene | None) -> bool:
    if scene is None:
        return False
    one, other = scene.things
    return one.shape == other.shape or one.color == other.color


def make_name(rng: Rng) -> str:
    """A common name, or one made of syllables or letters, so that copying is the only way to know it."""
    chance = rng.random()
    if chance < 0.4:
        return pick(rng, words.NAMES)
    if chance < 0.8:
        name = "".join(pick(rng, words.SYLLABLES) for _ in range(int(rng.integers(1, 5))))[:10]
        return name if rng.random() < 0.1 else name.capitalize()
    if chance < 0.95:
        name = "".join(pick(rng, tuple(string.ascii_lowercase)) for _ in range(int(rng.integers(2, 9))))
        return name if rng.random() < 0.3 else name.capitalize()
    return f"{pick(rng, words.NAMES)} {pick(rng, words.NAMES)}"


def off_topic(rng: Rng) -> str:
    """A sentence about anything but shapes."""
    text = pick(rng, say.OFF_TOPIC)
    junk = " ".join(_junk(rng) for _ in range(int(rng.integers(1, 4))))
    fills = {
        "thing": pick(rng, words.THINGS),
        "thing2": pick(rng, words.THINGS),
        "land": pick(rng, words.WORLD_PLACES),
        "land2": pick(rng, words.WORLD_PLACES),
        "digit": str(rng.integers(100)),
        "digit2": str(rng.integers(100)),
        "junk": junk,
        "salad": _salad(rng),
    }
    if rng.random() < 0.25:
        fills["thing"] = _junk(rng)
    for slot, word in fills.items():
        text = text.replace(f"{{{slot}}}", word)
    return text[0].upper() + text[1:]


def _salad(rng: Rng) -> str:
    """A beginning that many questions have, then words at random."""
    pool = words.COMMON_WORDS + words.THINGS + say.LITTLE_WORDS * 12
    chosen = [pick(rng, pool) for _ in range(int(rng.integers(1, 7)))]
    chosen = [
        _junk(rng) if rng.random() < 0.08 else word + pick(rng, ("", "", "", "s", "ed", "ing")) for word in chosen
    ]
    return f"{pick(rng, say.SALAD_START)} {' '.join(chosen)}".strip() + pick(rng, ("?", "?", ".", ".", "", "!"))


def _junk(rng: Rng) -> str:
    return "".join(pick(rng, words.SYLLABLES) for _ in range(int(rng.integers(1, 4))))


def corpus(count: int, seed: int) -> list[str]:
    """User texts and answers for the tokenizer, answers with the space that stands before them in a prompt."""
    rng = np.random.default_rng(seed)
    talker = Talker([sample_scene(rng) for _ in range(256)], rng)
    exchanges = [turn for _ in range(count) for turn in talker.conversation(4)]
    spoken = [text for turn in exchanges for text in (f" {turn.user}", turn.user, f" {turn.answer}")]
    nouns = [f"{word} {word.capitalize()}" for word in words.THINGS + words.WORLD_PLACES]
    return [*spoken, *nouns, *["User:", "\nUser:", "\nAssistant:"] * count]
