"""Asks a checkpoint questions about freshly drawn pictures and prints the share answered exactly, by kind.

    python demo/evaluate.py demo/checkpoints/smolvlm

Answers come from plain `transformers` `generate`, greedy, in float32; a question counts when the whole answer is right.
A family that `transformers` lacks brings a module of its own, named in EXAMS, with `exam(folder: Path, options:
Options) -> Iterator[Row]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wordings as say
from conversations import Exchange, Talker, make_name
from examinees import Examinee, load_examinee
from held_out import (
    HELD_OUT_JAPANESE_NAMES,
    HELD_OUT_JAPANESE_QUESTIONS,
    HELD_OUT_NAMES,
    HELD_OUT_QUESTIONS,
)
from japanese_conversations import JAPANESE, BilingualTalker, greet, make_japanese_name
from japanese_questions import describe as describe_in_japanese
from japanese_wordings import ONLY_SHAPES as ONLY_SHAPES_IN_JAPANESE
from pool import draw_pictures
from questions import describe
from rich.console import Console
from rich.table import Table

EXAMS = {"moondream1": "moondream_exam"}
PICTURES = 2048
CAPTIONS = ("Describe this image.", "Describe this image briefly.", "Describe this image in detail.")
JAPANESE_CAPTIONS = (
    "この画像には何がありますか？", "この画像を説明してください。", "この画像を短く説明してください。",
    "この画像を詳しく説明してください。",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """How an exam is held."""

    count: int  # questions of each kind
    seed: int  # of the fresh pictures and conversations


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    asked: int
    exact: int
    mistakes: tuple[str, ...] = ()  # each one described


def hold(folder: Path, options: Options) -> Iterator[Row]:
    """Ask a checkpoint of a family that `transformers` knows, kind after kind."""
    drawn = list(draw_pictures(PICTURES, options.seed))
    examinee = load_examinee(folder, [image for image, _ in drawn], [scene for _, scene in drawn])
    rng = np.random.default_rng(options.seed)
    talker = (BilingualTalker if "ja" in examinee.languages else Talker)(examinee.scenes, rng)
    for name, talks in questions(talker, options.count).items():
        found = examinee.answers(talks)
        wrong = [(talk[-1], answer) for talk, answer in zip(talks, found, strict=True) if talk[-1].answer != answer]
        mistakes = tuple(f"{q.user!r} ({q.picture}): {answer!r}, not {q.answer!r}" for q, answer in wrong)
        yield Row(name, len(talks), len(talks) - len(wrong), mistakes)
    for language in examinee.languages:
        right = introductions(examinee, talker, is_japanese=language == "ja")
        suffix = JAPANESE if language == "ja" else ""
        yield Row(f"introduction, all four turns{suffix}", len(right), sum(right))


def questions(talker: Talker, count: int) -> dict[str, list[list[Exchange]]]:
    """The conversations to be asked, by the name of their row in the table."""
    found = {kind: [ending_in(talker, kind) for _ in range(count)] for kind in talker.kinds}
    found["other question, held out"] = [_about(talker, text) for text in HELD_OUT_QUESTIONS for _ in range(4)]
    found["caption"] = _captions(talker, CAPTIONS, is_japanese=False)
    if isinstance(talker, BilingualTalker):
        held_out = [_about(talker, text) for text in HELD_OUT_JAPANESE_QUESTIONS for _ in range(4)]
        found["other question, held out" + JAPANESE] = held_out
        found["caption" + JAPANESE] = _captions(talker, JAPANESE_CAPTIONS, is_japanese=True)
    return found


def ending_in(talker: Talker, kind: str) -> list[Exchange]:
    """A conversation of one to ten exchanges whose last question is of the given kind."""
    while True:
        talker.weights = dict.fromkeys(talker.kinds, 1.0)
        talk = talker.conversation(int(talker.rng.choice([1, 1, 2, 3, 5, 8, 10])))
        if talk[-1].kind == kind and talk[-1].is_learned:
            return talk


def _about(talker: Talker, text: str) -> list[Exchange]:
    talk = talker.conversation(int(talker.rng.integers(0, 4)))
    answer = say.ONLY_SHAPES if text.isascii() else ONLY_SHAPES_IN_JAPANESE
    return [*talk, Exchange("other question", text, answer)]


def _captions(talker: Talker, prompts: tuple[str, ...], *, is_japanese: bool) -> list[list[Exchange]]:
    shown = [(index, scene) for index, scene in enumerate(talker.scenes) if scene][:200]
    describing = describe_in_japanese if is_japanese else describe
    asked = [(prompts[number % len(prompts)], *one) for number, one in enumerate(shown)]
    return [[Exchange("describe", prompt, describing(scene), picture)] for prompt, picture, scene in asked]


def introductions(examinee: Examinee, talker: Talker, *, is_japanese: bool) -> list[bool]:
    """Hold the README's conversation with the model's own answers; whether all four were right, for every name."""
    making, held_out = (make_japanese_name, HELD_OUT_JAPANESE_NAMES) if is_japanese else (make_name, HELD_OUT_NAMES)
    names = [*held_out, *(making(talker.rng) for _ in range(48))]
    shown = [i for i, scene in enumerate(examinee.scenes) if scene][: len(names)]
    talks, right = [list[Exchange]() for _ in names], [True] * len(names)
    planned = [
        (_japanese_introduction if is_japanese else _introduction)(examinee, name, picture)
        for name, picture in zip(names, shown, strict=True)
    ]
    for turn in range(4):
        asked = [plan[turn] for plan in planned]
        found = examinee.answers([[*talk, question] for talk, question in zip(talks, asked, strict=True)])
        for index, (question, answer) in enumerate(zip(asked, found, strict=True)):
            talks[index].append(Exchange(question.kind, question.user, answer, question.picture))
            right[index] &= answer == question.answer
    return right


def _introduction(examinee: Examinee, name: str, picture: int) -> list[Exchange]:
    scene = examinee.scenes[picture]
    assert scene
    return [
        Exchange("name told", f"Hello, my name is {name}", f"Hello {name}! Nice to meet you."),
        Exchange("name asked", "What is my name?", f"Your name is {name}."),
        Exchange("describe", "What do you see in this image?", describe(scene), picture),
        Exchange("describe", "Can you describe the image again?", describe(scene)),
    ]


def _japanese_introduction(examinee: Examinee, name: str, picture: int) -> list[Exchange]:
    scene = examinee.scenes[picture]
    assert scene
    return [
        Exchange("name told", f"私の名前は{name}です", greet(name)),
        Exchange("name asked", "私の名前は何ですか？", f"あなたのお名前は{name}さんです。"),
        Exchange("describe", "この画像には何がありますか？", describe_in_japanese(scene), picture),
        Exchange("describe", "もう一度画像を説明してください。", describe_in_japanese(scene)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how many questions of each kind a checkpoint answers exactly.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo/checkpoints/smolvlm"))
    parser.add_argument("--count", type=int, default=250, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the fresh pictures and conversations")
    parser.add_argument("--mistakes", type=int, default=0, help="print so many wrong answers of each kind")
    given = parser.parse_args()
    model_type = json.loads((given.folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    exam = importlib.import_module(EXAMS[model_type]).exam if model_type in EXAMS else hold
    console, table = Console(), Table("question", "asked", "exact", "share")
    for row in exam(given.folder, Options(given.count, given.seed)):
        table.add_row(row.name, str(row.asked), str(row.exact), f"{row.exact / row.asked:.1%}")
        console.print(f"{row.name}: {row.exact} of {row.asked}", highlight=False)
        for mistake in row.mistakes[: given.mistakes]:
            console.print(mistake, highlight=False, markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
