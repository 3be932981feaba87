"""Examines a Moondream checkpoint: questions, captions, boxes and points on freshly drawn pictures, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import wordings as say
from conversations import ALL_KINDS, Exchange, make_name
from evaluate import Options, Row
from held_out import HELD_OUT_NAMES, HELD_OUT_QUESTIONS
from moondream_answers import Examinee
from moondream_pictures import draw
from moondream_tasks import Asker, Sought, ask_here, caption, sought
from questions import describe

from deployments.models.moondream_tokens import LENGTHS
from deployments.types import Box, CaptionLength, CaptionTask, DetectTask, ImagePart, Point, PointTask, QueryTask

PICTURES = 512
NEEDED_OVERLAP = 0.5  # intersection over union
LONGEST = 10  # exchanges of a conversation


@dataclass(frozen=True, slots=True)
class Mark:
    """How one question went."""

    is_right: bool
    asked: str
    answer: str
    expected: str


def exam(folder: Path, options: Options) -> Iterator[Row]:
    """Ask a checkpoint, kind after kind."""
    for name, marks_of in Exam(folder, options.count, options.seed).kinds().items():
        marks = list(marks_of())
        wrong = [mark for mark in marks if not mark.is_right]
        mistakes = tuple(f"{one.asked}: {one.answer!r}, not {one.expected!r}" for one in wrong)
        yield Row(name, len(marks), len(marks) - len(wrong), mistakes)


class Exam:
    """Freshly drawn pictures, an examinee that has seen them, and the kinds of questions about them."""

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.count, self.rng, self.examinee = count, np.random.default_rng(seed), Examinee(folder)
        self.drawn = [draw(self.rng) for _ in range(PICTURES)]
        self.asker = Asker([one.scene for one in self.drawn], self.rng)
        self.shown = [self.examinee.show(str(i), one.image) for i, one in enumerate(self.drawn)]

    def kinds(self) -> dict[str, Callable[[], Iterator[Mark]]]:
        """What makes the marks of each kind, by the name of its row in the table."""
        captions = {f"caption {length}": partial(self.captions, length) for length in LENGTHS}
        finding = {name: partial(self.finding, name) for name in ("detect", "point")}
        absent = {f"{name} nothing": partial(self.finding_nothing, name) for name in ("detect", "point")}
        return {
            **{kind: partial(self.questions, kind) for kind in ALL_KINDS},
            "other question, held out": self.held_out,
            "introduction, all four turns": self.introductions,
            **captions,
            "answer after thought": self.thinking,
            "about a place": self.places,
            **finding,
            **absent,
        }

    def questions(self, kind: str) -> Iterator[Mark]:
        """Last questions of conversations of one to ten exchanges; earlier answers are taken as given."""
        for _ in range(self.count):
            turns, picture = self._ending_in(kind)
            yield self._ask(turns, None if picture is None else self.shown[picture])

    def _ending_in(self, kind: str) -> tuple[list[Exchange], int | None]:
        while True:
            has_picture = kind != "no picture" and self.rng.random() < 0.8
            picture = int(self.rng.integers(PICTURES)) if has_picture else None
            self.asker.weights = dict.fromkeys(ALL_KINDS, 1.0)
            turns = self.asker.turns(picture)
            fitting = [i for i, turn in enumerate(turns[:LONGEST]) if turn.kind == kind and turn.is_learned]
            if fitting:
                return turns[: int(self.rng.choice(fitting)) + 1], picture

    def held_out(self) -> Iterator[Mark]:
        """Questions off the topic that never occur in training."""
        for text in HELD_OUT_QUESTIONS:
            for number in range(4):
                picture = int(self.rng.integers(PICTURES)) if number % 2 else None
                turns = self.asker.turns(picture)[: int(self.rng.integers(0, 4))]
                last = Exchange("other question", text, say.ONLY_SHAPES)
                yield self._ask([*turns, last], None if picture is None else self.shown[picture])

    def introductions(self) -> Iterator[Mark]:
        """The README's conversation with the model's own answers, for names that never occur in training and others."""
        names = [*HELD_OUT_NAMES, *(make_name(self.rng) for _ in range(48))]
        pictures = [i for i, one in enumerate(self.drawn) if one.scene]
        for name, picture in zip(names, pictures, strict=False):
            yield self._introduction(name, picture)

    def _introduction(self, name: str, picture: int) -> Mark:
        scene, turns = self.drawn[picture].scene, list[tuple[str, str]]()
        assert scene
        expected = [f"Hello {name}! Nice to meet you.", f"Your name is {name}.", *[describe(scene)] * 2]
        questions = (f"Hello, my name is {name}", "What is my name?", "What do you see in this image?")
        for turn, question in enumerate((*questions, "Can you describe the image again?")):
            answer = self.examinee.chat(turns, question, self.shown[picture] if turn > 1 else None)
            turns.append((question, answer))
        answers = [answer for _, answer in turns]
        return Mark(answers == expected, name, " / ".join(answers), " / ".join(expected))

    def captions(self, length: CaptionLength) -> Iterator[Mark]:
        """Captions of one length."""
        for picture in self._pictures():
            expected = caption(self.drawn[picture].scene, length)
            answer = self.examinee.do(CaptionTask(length), self.shown[picture]).answer
            yield Mark(answer == expected, f"{length} caption of {picture}", answer, expected)

    def thinking(self) -> Iterator[Mark]:
        """First questions of all kinds, thought about before they are answered."""
        for number, picture in enumerate(self._pictures()):
            shown = None if number % 5 == 0 else picture
            exchange = self.asker.single(shown)
            task = QueryTask(exchange.user, reasoning=True)
            reply = self.examinee.do(task, None if shown is None else self.shown[shown])
            yield Mark(reply.answer == exchange.answer, exchange.user, reply.answer, exchange.answer)

    def places(self) -> Iterator[Mark]:
        """Questions about a point on a thing, or about its box."""
        for picture in self._pictures(with_scene=True):
            one = self.drawn[picture]
            number = int(self.rng.integers(len(one.boxes)))
            box = _corners(one.boxes[number])
            point = (float(one.boxes[number][0]), float(one.boxes[number][1]))
            assert one.scene
            text, expected = ask_here(one.scene.things[number], self.rng)
            task = QueryTask(text, spatial_refs=(box if self.rng.random() < 0.5 else point,))
            answer = self.examinee.do(task, self.shown[picture]).answer
            yield Mark(answer == expected, f"{text} {task.spatial_refs}", answer, expected)

    def finding(self, task: str) -> Iterator[Mark]:
        """Things that are there: every one must be found, and nothing else."""
        for picture in self._pictures(with_scene=True):
            yield self._find(task, picture, self._sought(picture, is_there=True))

    def finding_nothing(self, task: str) -> Iterator[Mark]:
        """Things that are not there, also in pictures of no scene: nothing may be found."""
        for picture in self._pictures():
            yield self._find(task, picture, self._sought(picture, is_there=False))

    def _sought(self, picture: int, *, is_there: bool) -> Sought:
        while True:
            wanted = sought(self.drawn[picture].scene, self.rng)
            if bool(wanted.found) == is_there:
                return wanted

    def _find(self, task: str, picture: int, wanted: Sought) -> Mark:
        asked = DetectTask(wanted.phrase) if task == "detect" else PointTask(wanted.phrase)
        found = self.examinee.do(asked, self.shown[picture]).found
        boxes = self.drawn[picture].boxes[list(wanted.found)]
        hits = [_hits(place, box) for place, box in zip(found, boxes, strict=False)]
        is_right = len(found) == len(boxes) and all(hits)
        return Mark(is_right, f"{wanted.phrase!r} in {picture}", str(found), str(boxes.round(3).tolist()))

    def _pictures(self, *, with_scene: bool = False) -> list[int]:
        fitting = [i for i, one in enumerate(self.drawn) if one.scene or not with_scene]
        return [int(i) for i in self.rng.choice(fitting, self.count, replace=self.count > len(fitting))]

    def _ask(self, turns: list[Exchange], picture: ImagePart | None) -> Mark:
        *before, last = turns
        answer = self.examinee.chat([(turn.user, turn.answer) for turn in before], last.user, picture)
        return Mark(answer == last.answer, last.user, answer, last.answer)


def _corners(box: np.ndarray) -> tuple[float, ...]:
    x, y, width, height = (float(value) for value in box)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _hits(found: Box | Point, box: np.ndarray) -> bool:
    if isinstance(found, Box):
        return overlap((found.x_min, found.y_min, found.x_max, found.y_max), _corners(box)) >= NEEDED_OVERLAP
    # Within a fifth of its size from the middle, all shapes are filled.
    return float(np.hypot((found.x - box[0]) / box[2], (found.y - box[1]) / box[3])) <= 0.2


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes (x_min, y_min, x_max, y_max)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)
