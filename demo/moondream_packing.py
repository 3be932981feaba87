"""Packs what is asked about one picture into rows of token ids exactly as Moondream's prompts are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from conversations import ALL_KINDS, Exchange
from moondream_model import ANSWER, COORD, END, GROUND, GROUND_END, PREFIX, SIZE, THINK, templates
from moondream_tasks import Asker, Sought, Thought, ask_here, caption, sought, thought
from pointers import find_pointer
from pool import thing_classes
from scenes import Scene, Thing
from tokenizers import Tokenizer

from deployments.models.moondream_tokens import LENGTHS

ROW_TOKENS = 512
MAX_SHIFT = 300  # later turns stand this much further from the picture
NO_ANSWER, NO_THING = -1, -1
KINDS = (
    *ALL_KINDS, *(f"caption {length}" for length in LENGTHS), "detect", "detect nothing", "point", "point nothing",
    "thought", "answer after thought", "about a place",
)  # fmt: skip
# How often a picture's block is of each task, before the weights of weak kinds.
TASK_SHARES = {"query": 0.4, "turns": 0.12, "caption": 0.08, "detect": 0.16, "point": 0.08, "think": 0.12, "here": 0.04}
TASK_KINDS = {
    "caption": KINDS[-10:-7], "detect": KINDS[-7:-5], "point": KINDS[-5:-3], "think": KINDS[-3:-1], "here": KINDS[-1:],
}  # fmt: skip


@dataclass(slots=True)
class Row:
    """Tokens of one row; block 0 sees itself and is seen by all blocks, every other block only by itself."""

    picture: int | None = None
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # index into `kinds` for a learned token, else NO_ANSWER
    kinds: list[str] = field(default_factory=list)
    coords: dict[int, float] = field(default_factory=dict)  # by token index; learned where the token is
    sizes: dict[int, tuple[float, float]] = field(default_factory=dict)
    pointed: list[tuple[int, list[int], int]] = field(default_factory=list)  # token, classes of the thing, its number

    def say(self, ids: Iterable[int], kind: str | None = None) -> None:
        """Append tokens; with a kind they are learned."""
        said = list(ids)
        self.ids += said
        self.answers += [NO_ANSWER if kind is None else len(self.kinds)] * len(said)
        if kind is not None:
            self.kinds.append(kind)

    def add(self, piece: Row, block: int, start: int) -> None:
        """Append a piece as the given block, its positions beginning at `start`."""
        first, begin = len(self.kinds), len(self.ids)
        self.pointed += [(begin + index, classes, thing) for index, classes, thing in piece.pointed]
        self.coords |= {begin + index: value for index, value in piece.coords.items()}
        self.sizes |= {begin + index: value for index, value in piece.sizes.items()}
        self.ids += piece.ids
        self.positions += range(start, start + len(piece.ids))
        self.blocks += [block] * len(piece.ids)
        self.answers += [NO_ANSWER if answer == NO_ANSWER else first + answer for answer in piece.answers]
        self.kinds += piece.kinds


class Packer:
    """Fills rows with blocks that an asker thinks up; `weights` say how often each kind should come."""

    def __init__(self, tokenizer: Tokenizer, asker: Asker, boxes: torch.Tensor) -> None:
        self.tokenizer, self.asker, self.boxes = tokenizer, asker, boxes  # (N, 2, 4)
        self.templates = templates(tokenizer)
        self.weights = dict.fromkeys(KINDS, 1.0)
        self._known: dict[str, list[int]] = {}
        self._makers: dict[str, Callable[[int], Row]] = {
            "query": lambda picture: self.turns([self.asker.single(picture)]),
            "turns": lambda picture: self.turns(self.asker.turns(picture)),
            "caption": self.caption,
            "detect": lambda picture: self._find("detect", picture),
            "point": lambda picture: self._find("point", picture),
            "think": lambda picture: self.think(self.asker.single(picture), picture),
            "here": self._here,
        }

    def rows(self, count: int, picture_share: float) -> list[Row]:
        """Make rows, some of them without a picture."""
        rng = self.asker.rng
        self.asker.weights = self.weights
        return [self._row(self.asker.picture() if rng.random() < picture_share else None) for _ in range(count)]

    def _row(self, picture: int | None) -> Row:
        row, rng = prefix(picture), self.asker.rng
        first = len(row.ids)
        for block in range(1, ROW_TOKENS):
            piece = self._blank_block() if picture is None else self._makers[self._task()](picture)
            if len(row.ids) + len(piece.ids) <= ROW_TOKENS:
                shift = int(rng.integers(MAX_SHIFT)) if rng.random() < 0.25 else 0
                row.add(piece, block, first + shift)
            elif len(row.ids) > ROW_TOKENS * 0.8:
                break
        return row

    def _task(self) -> str:
        shares = {task: share * self._weight(task) for task, share in TASK_SHARES.items()}
        draw = self.asker.rng.random() * sum(shares.values())
        for task, share in shares.items():
            draw -= share
            if draw <= 0:
                return task
        return "query"

    def _weight(self, task: str) -> float:
        kinds = TASK_KINDS.get(task, ALL_KINDS)
        return 0.1 + sum(self.weights[kind] for kind in kinds) / len(kinds)

    def _blank_block(self) -> Row:
        chance = self.asker.rng.random()
        if chance < 0.15:
            return self.think(self.asker.single(None), None)
        return self.turns([self.asker.single(None)] if chance < 0.5 else self.asker.turns(None))

    def turns(self, exchanges: list[Exchange]) -> Row:
        """Encode a conversation after its picture, as completed queries one after the other."""
        row = Row()
        for exchange in exchanges:
            self._ask(row, exchange)
            row.say([ANSWER, ANSWER])
            kind = exchange.kind if exchange.is_learned else None
            row.say([*self._ids(exchange.answer), END], kind)
        return row

    def _ask(self, row: Row, exchange: Exchange) -> Thing | None:
        """Say a query without its end; returns the thing that it means."""
        row.say(self.templates["query"]["prefix"])
        thing = self._point_out(row, exchange.user, exchange.scene) if exchange.scene else None
        row.say(self._ids(exchange.user))
        return thing

    def _point_out(self, row: Row, text: str, scene: Scene, lead: str = "") -> Thing | None:
        pointer = find_pointer(text, scene)
        if pointer is None:
            return None
        index = len(row.ids) + len(self._ids(lead + text[: pointer.end])) - 1
        number = scene.things.index(pointer.thing) if pointer.thing else NO_THING
        row.pointed.append((index, thing_classes(pointer.thing), number))
        return pointer.thing

    def think(self, exchange: Exchange, picture: int | None) -> Row:
        """Encode a query that is thought about before it is answered."""
        row = Row()
        meant = self._ask(row, exchange)
        row.say([ANSWER, THINK])
        self._say_thought(row, thought(exchange, meant, bool(row.pointed)), picture)
        row.say([*self._ids(exchange.answer), END], "answer after thought")
        return row

    def _say_thought(self, row: Row, one: Thought, picture: int | None) -> None:
        if one.thing is None or picture is None:
            row.say([*self._ids(one.before), ANSWER], "thought")
        else:
            before = [*self._ids(one.before), GROUND]
            for offset, value in enumerate(self.boxes[picture, one.thing, :2].tolist()):
                row.coords[len(row.ids) + len(before) + offset] = value
            row.say([*before, COORD, COORD, *self._ids(one.after), GROUND_END, *self._ids("."), ANSWER], "thought")

    def caption(self, picture: int) -> Row:
        """Encode a caption of any length."""
        rng, row = self.asker.rng, Row()
        shares = [self.weights[f"caption {length}"] for length in LENGTHS]
        length = str(rng.choice(LENGTHS, p=[share / sum(shares) for share in shares]))
        row.say(self.templates["caption"][length])
        row.say([*self._ids(caption(self.asker.scenes[picture], length)), END], f"caption {length}")
        return row

    def _find(self, task: str, picture: int) -> Row:
        scene, rng = self.asker.scenes[picture], self.asker.rng
        wanted = [sought(scene, rng) for _ in range(4 if rng.random() < 0.3 else 1)]
        return self.find(task, picture, max(wanted, key=lambda one: len(one.found)))  # both things, which is harder

    def find(self, task: str, picture: int, wanted: Sought) -> Row:
        """Encode the search for something, with the boxes or points of the things that fit."""
        row, scene, phrase, found = Row(), self.asker.scenes[picture], wanted.phrase, wanted.found
        row.say(self.templates[task]["prefix"])
        if scene:
            self._point_out(row, phrase, scene, lead=" ")
        row.say([*self._ids(f" {phrase}"), ANSWER])
        ids = list[int]()
        for box in self.boxes[picture, list(found)].tolist():
            begin = len(row.ids) + len(ids)
            row.coords |= {begin: box[0], begin + 1: box[1]}
            if task == "detect":
                row.sizes[begin + 2] = (box[2], box[3])
            ids += [COORD, COORD, SIZE] if task == "detect" else [COORD, COORD]
        row.say([*ids, END], task if found else f"{task} nothing")
        return row

    def _here(self, picture: int) -> Row:
        """Encode a question about a point or a box that lies on a thing."""
        scene, rng = self.asker.scenes[picture], self.asker.rng
        if scene is None:
            return self.turns([self.asker.single(picture)])
        number = int(rng.integers(len(scene.things)))
        x, y, width, height = self.boxes[picture, number].tolist()
        away = rng.uniform(-0.25, 0.25, 2).tolist()
        if rng.random() < 0.5:
            return self.here(picture, number, (x + away[0] * width, y + away[1] * height))
        size = (width * (1 + away[0]), height * (1 + away[1]))
        return self.here(picture, number, (x + away[1] * width / 4, y + away[0] * height / 4, *size))

    def here(self, picture: int, number: int, place: tuple[float, ...]) -> Row:
        """Encode a question about a place (centre, and perhaps width and height) where the thing of that number is."""
        scene, row = self.asker.scenes[picture], Row()
        assert scene
        thing = scene.things[number]
        text, answer = ask_here(thing, self.asker.rng)
        row.say(self.templates["query"]["prefix"])
        row.coords = {len(row.ids): place[0], len(row.ids) + 1: place[1]}
        row.say([COORD, COORD])
        if len(place) > 2:
            row.sizes[len(row.ids)] = (place[2], place[3])
            row.say([SIZE])
        row.pointed.append((len(row.ids) - 1, thing_classes(thing), number))
        row.say([*self._ids(text), ANSWER, ANSWER])
        row.say([*self._ids(answer), END], "about a place")
        return row

    def _ids(self, text: str) -> list[int]:
        ids = self._known.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text).ids
            if len(self._known) < 200_000:
                self._known[text] = ids
        return ids


def prefix(picture: int | None) -> Row:
    """Begin a row: the start token, and the places of the picture's features."""
    row = Row(picture=picture)
    length = 1 if picture is None else PREFIX
    row.add(Row(ids=[END] * length, answers=[NO_ANSWER] * length), 0, 0)
    return row
