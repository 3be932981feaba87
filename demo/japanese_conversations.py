"""Makes conversations in English and Japanese, now and then changing between them; Japanese kinds end with JAPANESE."""

from __future__ import annotations

import japanese_wordings as say
import numpy as np
import wordings
import words
from conversations import ALL_KINDS, Course, Exchange, Talker, make_name
from japanese_questions import ask_about, careless
from questions import KINDS, Rng, pick
from scenes import Scene, sample_scene

JAPANESE = ", Japanese"
JAPANESE_SHARE = 0.55
SWITCHING = 0.08  # of the turns are in another language than the one before
OTHER_SCRIPT = 0.08  # of the names are of the other language


class BilingualTalker(Talker):
    """Samples conversations whose every turn is answered in its own language."""

    kinds = (*ALL_KINDS, *(kind + JAPANESE for kind in ALL_KINDS))
    is_japanese = False  # the turn at hand

    def single(self, picture: int | None, kind: str | None = None) -> Exchange:
        """One first turn in either language."""
        self._choose()
        return super().single(picture, kind)

    def conversation(self, length: int) -> list[Exchange]:
        """Up to ten exchanges that begin in either language."""
        self._choose()
        return super().conversation(length)

    def shown(self, picture: int, described_share: float, named_share: float) -> list[Exchange]:
        """A conversation about a picture that begins in either language."""
        self._choose()
        return super().shown(picture, described_share, named_share)

    def introduction(self) -> list[Exchange]:
        """The README's conversation in either language."""
        self._choose()
        return super().introduction()

    def weight(self, kind: str) -> float:
        """How often a kind is wanted now in the language at hand."""
        return self.weights[kind + JAPANESE if self.is_japanese else kind]

    def exchange(self, course: Course, kind: str, picture: int | None) -> Exchange:
        """The next exchange of one kind, in the language at hand; then perhaps the language changes."""
        made = self._japanese(course, kind, picture) if self.is_japanese else super().exchange(course, kind, picture)
        asks_back = made.answer in (wordings.ASK_NAME, say.ASK_NAME)
        if not asks_back and self.rng.random() < SWITCHING:
            self.is_japanese = not self.is_japanese
        return made

    def make_name(self) -> str:
        """A name of the language at hand, seldom of the other."""
        is_japanese = self.is_japanese != (self.rng.random() < OTHER_SCRIPT)
        return make_japanese_name(self.rng) if is_japanese else make_name(self.rng)

    def _choose(self) -> None:
        self.is_japanese = bool(self.rng.random() < JAPANESE_SHARE)

    def _japanese(self, course: Course, kind: str, picture: int | None) -> Exchange:
        if kind in KINDS:
            assert course.scene
            question = ask_about(course.scene, kind, self.rng)
            return Exchange(kind + JAPANESE, question.text, question.answer, picture, scene=course.scene)
        if kind in ("no picture", "other picture"):
            question = ask_about(sample_scene(self.rng), pick(self.rng, tuple(KINDS)), self.rng)
            answer = say.NO_PICTURE if kind == "no picture" else say.ONLY_SHAPES
            return Exchange(kind + JAPANESE, question.text, answer, picture)
        text, answer = self._say(course, kind)
        return Exchange(kind + JAPANESE, text, answer, picture)

    def _say(self, course: Course, kind: str) -> tuple[str, str]:
        if kind == "name told":
            return self._named(course)
        if kind == "name asked":
            return careless(pick(self.rng, say.ASK_FOR_NAME), self.rng), f"あなたのお名前は{course.name}さんです。"
        if kind == "name missing":
            if self.rng.random() < 0.5:
                return careless(pick(self.rng, say.ASK_FOR_NAME), self.rng), say.UNKNOWN_NAME
            return pick(self.rng, say.TELL_NO_NAME), say.ASK_NAME
        if kind == "talk":
            answer = pick(self.rng, tuple(say.TALK))
            return careless(pick(self.rng, say.TALK[answer]), self.rng), answer
        return careless(off_topic(self.rng), self.rng), say.ONLY_SHAPES

    def _named(self, course: Course) -> tuple[str, str]:
        options: tuple[str, ...] = say.RENAME + say.TELL_NAME if course.name else say.TELL_NAME
        options = say.ANSWER_NAME if course.was_asked_name() else options
        course.name = self.make_name()
        return pick(self.rng, options).replace("{name}", course.name), greet(course.name)

    def _about_lost(self, scene: Scene) -> Exchange:
        if not self.is_japanese:
            return super()._about_lost(scene)
        question = ask_about(scene, pick(self.rng, tuple(KINDS)), self.rng)
        return Exchange(question.kind + JAPANESE, question.text, question.answer, is_learned=False)


def greet(name: str) -> str:
    """What is said to somebody who has told their name."""
    return f"こんにちは、{name}さん！はじめまして。"


def make_japanese_name(rng: Rng) -> str:
    """A common name, or one made of characters, so that copying is the only way to know it."""
    chance = rng.random()
    if chance < 0.4:
        return pick(rng, say.NAMES)
    script, longest = (say.NAME_KANJI, 4) if chance < 0.65 else (say.HIRAGANA, 5) if chance < 0.8 else (say.KATAKANA, 6)
    return (
        "".join(pick(rng, tuple(script)) for _ in range(int(rng.integers(2, longest + 1)))).lstrip("ーんン") or "ゆみ"
    )


def off_topic(rng: Rng) -> str:
    """A sentence about anything but shapes."""
    text = pick(rng, say.OFF_TOPIC)
    lists = {
        "thing": say.THINGS, "thing2": say.THINGS, "land": say.LANDS, "land2": say.LANDS, "verb": say.VERBS,
        "adjective": say.ADJECTIVES,
    }  # fmt: skip
    fills = {slot: pick(rng, words) for slot, words in lists.items()}
    fills |= {"digit": str(rng.integers(100)), "digit2": str(rng.integers(100)), "junk": _junk(rng)}
    if rng.random() < 0.25:
        fills["thing"] = _junk(rng)
    for slot, word in fills.items():
        text = text.replace(f"{{{slot}}}", word)
    return text


def _junk(rng: Rng) -> str:
    script = pick(rng, (say.HIRAGANA, say.KATAKANA, say.KATAKANA, say.NAME_KANJI))
    return "".join(pick(rng, tuple(script)) for _ in range(int(rng.integers(2, 6))))


def corpus(count: int, seed: int) -> list[str]:
    """User texts and answers for the tokenizer, as they stand in a prompt: each one from the beginning of a line."""
    rng = np.random.default_rng(seed)
    talker = BilingualTalker([sample_scene(rng) for _ in range(256)], rng)
    exchanges = [turn for _ in range(count) for turn in talker.conversation(4)]
    nouns = [f" {word} {word.capitalize()}" for word in words.THINGS + words.WORLD_PLACES]
    frame = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * count
    return [*(text for turn in exchanges for text in (turn.user, turn.answer)), *nouns, *frame]
