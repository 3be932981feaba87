"""Packs conversations into rows of token ids exactly as the chat template would write them, many behind one picture."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import torch
from conversations import Exchange, Talker
from dialects import SMOLVLM, Dialect, Position
from pointers import find_pointer
from pool import thing_classes
from tokenizers import Tokenizer

ROW_TOKENS = 384
MAX_SHIFT = 400  # later turns stand this much further from the picture
NO_ANSWER = -1


@dataclass(slots=True)
class Row:
    """Tokens of one row; block 0 is seen by all blocks, every other block only by itself."""

    ids: list[int] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)  # index into `kinds` for a learned answer's tokens, else NO_ANSWER
    pictures: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    pointed: list[tuple[int, list[int]]] = field(default_factory=list)  # a token's index, classes of the thing it means
    next_position: int = 0  # of a token that follows

    def add(self, piece: Row, block: int, start: int) -> None:
        """Append a piece as the given block, its positions counted from `start`."""
        first, begin = len(self.kinds), len(self.ids)
        self.pointed += [(begin + index, classes) for index, classes in piece.pointed]
        self.ids += piece.ids
        self.positions += [(start + t, start + y, start + x) for t, y, x in piece.positions]
        self.next_position = start + piece.next_position
        self.blocks += [block] * len(piece.ids)
        self.answers += [NO_ANSWER if answer == NO_ANSWER else first + answer for answer in piece.answers]
        self.pictures += piece.pictures
        self.kinds += piece.kinds


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, all padded to one length."""

    ids: torch.Tensor  # (B, L)
    positions: torch.Tensor  # (3, B, L), by time, line and column; all the same but for the tokens of a picture's grid
    mask: torch.Tensor  # (B, 1, L, L) bool, True where a token may look
    answers: torch.Tensor  # (B, L) number of the exchange in the batch that the token answers, else NO_ANSWER
    pictures: torch.Tensor  # (num_pictures,) in the order of their placeholders
    kinds: list[str]  # of each exchange
    pointing: (
        torch.Tensor
    )  # (num_pointers,) index into the flattened rows of each word that settles which thing is meant
    pointed: torch.Tensor  # (num_pointers, 3) classes of that thing's shape, color and place


class Packer:
    """Turns a talker's conversations into batches, written in a family's dialect."""

    def __init__(
        self, tokenizer: Tokenizer, talker: Talker, dialect: Dialect = SMOLVLM, row_tokens: int = ROW_TOKENS
    ) -> None:
        self.tokenizer, self.talker, self.rng, self.dialect = tokenizer, talker, talker.rng, dialect
        self.row_tokens = row_tokens  # room for a conversation of ten exchanges with its picture, or none is learned
        self._known: dict[str, tuple[list[int], list[int]]] = {}  # ids, and where each token begins in the text

    def batch(self, rows: int, single_share: float) -> Batch:
        """Make rows; `single_share` of them hold unrelated first turns about one picture, the others conversations."""
        made = [self._singles() if self.rng.random() < single_share else self._conversations() for _ in range(rows)]
        return to_batch(made, self.piece(self.dialect.pad).ids[0], self.row_tokens)

    def _singles(self) -> Row:
        picture = self.talker.picture()
        row = Row()
        row.add(self.piece(self.dialect.start + self.dialect.before_text(picture), picture), 0, 0)
        first = row.next_position
        for block in range(1, self.row_tokens):
            piece = self.block([self.talker.single(picture)], has_prefix=True)
            if len(row.ids) + len(piece.ids) > self.row_tokens:
                break
            shift = int(self.rng.integers(MAX_SHIFT)) if self.rng.random() < 0.5 else 0
            row.add(piece, block, first + shift)
        return row

    def _conversations(self) -> Row:
        row = Row()
        row.add(self.piece(self.dialect.start), 0, 0)
        first = row.next_position
        for block in range(1, self.row_tokens):
            is_introduction = self.rng.random() < 0.2
            exchanges = self.talker.introduction() if is_introduction else self.talker.conversation(self._length())
            piece = self.block(exchanges, has_prefix=False)
            if len(row.ids) + len(piece.ids) <= self.row_tokens:
                row.add(piece, block, first)
            elif len(row.ids) > self.row_tokens // 2:
                break
        return row

    def _length(self) -> int:
        return int(self.rng.choice([1, 2, 2, 3, 4, 6, 10]))

    def block(self, exchanges: list[Exchange], *, has_prefix: bool) -> Row:
        """Encode a conversation without the dialect's start; with a prefix also without the first turn's picture."""
        block = Row()
        for turn, exchange in enumerate(exchanges):
            before = "" if has_prefix and turn == 0 else self.dialect.before_text(exchange.picture)
            asked = f"{before}{exchange.user}{self.dialect.before_answer}"
            piece = self.piece(asked, None if has_prefix else exchange.picture)
            piece.pointed = self._pointed(exchange, asked, len(before))
            for part in (piece, self._answer(exchange), self.piece(self.dialect.between)):
                block.add(part, 0, block.next_position)
        return block

    def _pointed(self, exchange: Exchange, asked: str, begin: int) -> list[tuple[int, list[int]]]:
        pointer = find_pointer(exchange.user, exchange.scene) if exchange.scene else None
        if pointer is None:
            return []
        _, starts = self._encode(asked)
        return [(bisect_left(starts, begin + pointer.end) - 1, thing_classes(pointer.thing))]

    def _answer(self, exchange: Exchange) -> Row:
        piece = self.piece(self.dialect.answer.replace("{answer}", exchange.answer))
        if exchange.is_learned:
            piece.answers, piece.kinds = [0] * len(piece.ids), [exchange.kind]
        return piece

    def piece(self, text: str, picture: int | None = None) -> Row:
        """Encode a text; `picture` is what its placeholders, if it has any, stand for."""
        ids, _ = self._encode(text)
        shown = None if picture is None or self.dialect.image not in text else picture
        positions, following = self.dialect.positions(ids, shown)
        return Row(
            list(ids),
            positions,
            answers=[NO_ANSWER] * len(ids),
            pictures=[] if shown is None else [shown],
            next_position=following,
        )

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        known = self._known.get(text)
        if known is None:
            encoded = self.tokenizer.encode(text, add_special_tokens=False)
            known = encoded.ids, [start for start, _ in encoded.offsets]
            if len(self._known) < 200_000:
                self._known[text] = known
        return known


def to_batch(rows: list[Row], pad: int, row_tokens: int = ROW_TOKENS) -> Batch:
    """Stack rows, padded to `row_tokens`, and number their answers through."""
    ids = torch.full((len(rows), row_tokens), pad)
    positions, blocks = torch.zeros(3, *ids.shape, dtype=torch.long), torch.full_like(ids, -1)
    answers, kinds = torch.full_like(ids, NO_ANSWER), list[str]()
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        positions[:, index, :length] = torch.tensor(row.positions).T
        blocks[index, :length] = torch.tensor(row.blocks)
        numbered = torch.tensor(row.answers)
        answers[index, :length] = torch.where(numbered == NO_ANSWER, numbered, numbered + len(kinds))
        kinds += row.kinds
    pictures = torch.tensor([picture for row in rows for picture in row.pictures], dtype=torch.long)
    pointers = [(r * row_tokens + index, classes) for r, row in enumerate(rows) for index, classes in row.pointed]
    pointing = torch.tensor([index for index, _ in pointers], dtype=torch.long)
    pointed = torch.tensor([classes for _, classes in pointers], dtype=torch.long).reshape(-1, 3)
    return Batch(ids, positions, _mask(blocks), answers, pictures, kinds, pointing, pointed)


def _mask(blocks: torch.Tensor) -> torch.Tensor:
    seen, looking = blocks[:, None, :], blocks[:, :, None]
    causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool).tril()
    return (causal & ((seen == 0) | (seen == looking)))[:, None]
