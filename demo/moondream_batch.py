"""Stacks packed rows into the tensors that a training step takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from moondream_model import END
from moondream_packing import NO_ANSWER, ROW_TOKENS, Row


@dataclass(frozen=True, slots=True)
class Numbers:
    """Places or sizes that stand among a batch's tokens."""

    at: torch.Tensor  # (n,) index into the flattened rows
    values: torch.Tensor  # (n, 1) coordinates or (n, 2) widths and heights, in fractions of the picture's sides
    answers: torch.Tensor  # (n,) number of the exchange that they belong to, NO_ANSWER for what the asker names

    def learned(self) -> Numbers:
        """Those that the model has to find."""
        chosen = self.answers != NO_ANSWER
        return Numbers(self.at[chosen], self.values[chosen], self.answers[chosen])


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, padded to ROW_TOKENS."""

    ids: torch.Tensor  # (B, L)
    positions: torch.Tensor  # (B, L)
    mask: torch.Tensor  # (B, 1, L, L) bool, True where a token may look
    answers: torch.Tensor  # (B, L) number of the exchange in the batch that the token answers, else NO_ANSWER
    kinds: list[str]  # of each exchange
    shown: torch.Tensor  # (rows with a picture,) numbers of the rows
    pictures: torch.Tensor  # (rows with a picture,) which one
    coords: Numbers
    sizes: Numbers
    pointing: torch.Tensor  # (pointers,) index into the flattened rows of each word that settles which thing is meant
    pointed: torch.Tensor  # (pointers, 3) classes of that thing's shape, color and place
    meant: torch.Tensor  # (pointers, 2) picture and thing's number, -1 for none


def to_batch(rows: list[Row]) -> Batch:
    """Stack rows and number their answers through."""
    ids = torch.full((len(rows), ROW_TOKENS), END)
    positions, blocks = torch.zeros_like(ids), torch.full_like(ids, -1)
    answers, kinds = torch.full_like(ids, NO_ANSWER), list[str]()
    for index, row in enumerate(rows):
        length = len(row.ids)
        ids[index, :length] = torch.tensor(row.ids)
        positions[index, :length] = torch.tensor(row.positions)
        blocks[index, :length] = torch.tensor(row.blocks)
        numbered = torch.tensor(row.answers)
        answers[index, :length] = torch.where(numbered == NO_ANSWER, numbered, numbered + len(kinds))
        kinds += row.kinds
    shown = [index for index, row in enumerate(rows) if row.picture is not None]
    pointers = [
        (r * ROW_TOKENS + index, classes, [row.picture, thing])
        for r, row in enumerate(rows)
        for index, classes, thing in row.pointed
    ]
    coords = {r * ROW_TOKENS + at: (value,) for r, row in enumerate(rows) for at, value in row.coords.items()}
    sizes = {r * ROW_TOKENS + at: value for r, row in enumerate(rows) for at, value in row.sizes.items()}
    return Batch(
        ids,
        positions,
        _mask(blocks),
        answers,
        kinds,
        torch.tensor(shown, dtype=torch.long),
        torch.tensor([rows[index].picture for index in shown], dtype=torch.long),
        _numbers(coords, 1, answers),
        _numbers(sizes, 2, answers),
        torch.tensor([index for index, _, _ in pointers], dtype=torch.long),
        torch.tensor([classes for _, classes, _ in pointers], dtype=torch.long).reshape(-1, 3),
        torch.tensor([meant for _, _, meant in pointers], dtype=torch.long).reshape(-1, 2),
    )


def _numbers(values: Mapping[int, tuple[float, ...]], width: int, answers: torch.Tensor) -> Numbers:
    at = torch.tensor(list(values), dtype=torch.long)
    stacked = torch.tensor(list(values.values()), dtype=torch.float32).reshape(-1, width)
    return Numbers(at, stacked, answers.flatten()[at])


def _mask(blocks: torch.Tensor) -> torch.Tensor:
    seen, looking = blocks[:, None, :], blocks[:, :, None]
    causal = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool).tril()
    return ((causal & ((seen == 0) | (seen == looking))) | ((seen == 0) & (looking == 0)))[:, None]
