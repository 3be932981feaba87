"""Holds a language model's `run` against its `forward`: several sequences through flat passes, and each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from deployments.models.family import Output

NUM_DECODES = 3


@dataclass
class Talk:
    """One sequence: its embeddings by index, the first `num_prompt` of which go in as `cuts` part them, the others one
    by one."""

    embeddings: torch.Tensor  # (S, D)
    positions: torch.Tensor  # (position_rows, S)
    cuts: tuple[int, ...]  # ends of the stretches; the last is the prompt's
    num_mutual: int = 0
    keys: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, (tokens so far, kv_heads, head_dim)
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def stretches(self) -> list[tuple[int, int]]:
        ends = [*self.cuts, *range(self.cuts[-1] + 1, len(self.embeddings) + 1)]
        return list(pairwise([0, *ends]))

    def mask(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, stop) bool, True where attended."""
        mask = torch.ones(stop, stop, dtype=torch.bool).tril()
        mask[: self.num_mutual, : self.num_mutual] = True
        return mask[start:stop, :stop]


class PlainAttention:
    """Attention by its formula, each stretch alone, over keys and values that simply grow."""

    def __init__(self, stretches: Sequence[tuple[Talk, int, int]]) -> None:
        self._stretches = stretches

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        assert (query.ndim, key.shape, query.shape[0]) == (3, value.shape, key.shape[0])
        mixed, begin = [], 0
        for talk, start, stop in self._stretches:
            here = slice(begin, begin + stop - start)
            for kept, new in ((talk.keys, key), (talk.values, value)):
                kept[layer] = torch.cat([kept[layer][:start], new[here]]) if start else new[here].clone()
            mixed.append(self._mix(talk, layer, query[here], talk.mask(start, stop), scale))
            begin = here.stop
        assert begin == len(query)
        return torch.cat(mixed)

    def _mix(
        self, talk: Talk, layer: int, query: torch.Tensor, mask: torch.Tensor, scale: float | None
    ) -> torch.Tensor:
        group = query.shape[1] // talk.keys[layer].shape[1]
        keys, values = (kept[layer].repeat_interleave(group, dim=1) for kept in (talk.keys, talk.values))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = torch.einsum("qhd,khd->hqk", query.double(), keys.double()) * scale
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, values.double()).to(query.dtype).flatten(1)


def make_talks(language: Any, position_rows: int, num_mutual: int = 0) -> list[Talk]:
    """Prompts of several lengths in whole and in pieces. With three position rows they run apart, as in pictures."""
    chance = torch.Generator().manual_seed(4)
    talks = []
    for length, cuts in ((11, (11,)), (1, (1,)), (23, (9, 20, 23)), (16, (8, 16)), (37, (36, 37))):
        ids = torch.randint(language.vocab_size, (1, length + NUM_DECODES), generator=chance)
        steps = torch.arange(length + NUM_DECODES)
        rows = [torch.where(steps < length, steps // (row + 1), steps - length + length // 2) for row in (0, 1, 2)]
        positions = torch.stack(rows) if position_rows == 3 else steps[None]
        talks.append(Talk(language.embed(ids)[0].clone(), positions, cuts, min(num_mutual, cuts[0])))
    return talks


def outputs_one_by_one(language: Any, talks: Sequence[Talk]) -> list[list[Output]]:
    """By `forward`, of the last prompt token and of those behind it."""
    outputs = []
    for talk in talks:
        cache, each = DynamicCache(), []
        prompt, *steps = [(0, talk.cuts[-1]), *talk.stretches()[len(talk.cuts) :]]
        for start, stop in (prompt, *steps):
            part, positions = talk.embeddings[None, start:stop], talk.positions[:, None, start:stop]
            each.append(language.forward(part, positions, cache, talk.mask(start, stop)[None, None]))
        outputs.append(each)
    return outputs


def outputs_together(language: Any, talks: Sequence[Talk]) -> list[list[Output]]:
    """By `run`: in each pass the next stretch of every talk, those of one token first, as the engine has it."""
    outputs: list[list[Output]] = [[] for _ in talks]
    for planned in _passes(talks):
        stretches = [(talks[number], start, stop) for number, start, stop in planned]
        asking = [stop >= talk.cuts[-1] for talk, _, stop in stretches]
        ends = torch.tensor([stop - start for _, start, stop in stretches]).cumsum(0) - 1
        output = language.run(
            torch.cat([talk.embeddings[start:stop] for talk, start, stop in stretches]),
            torch.cat([talk.positions[:, start:stop] for talk, start, stop in stretches], dim=1),
            PlainAttention(stretches),
            ends[torch.tensor(asking)],
        )
        assert (len(output.logits), output.logits.dtype) == (sum(asking), torch.float32)
        who = [number for (number, _, _), is_asking in zip(planned, asking, strict=True) if is_asking]
        for row, number in enumerate(who):
            hidden = None if output.hidden is None else output.hidden[row : row + 1]
            outputs[number].append(Output(output.logits[row : row + 1], hidden))
    return outputs


def _passes(talks: Sequence[Talk]) -> Iterator[list[tuple[int, int, int]]]:
    left = [talk.stretches() for talk in talks]
    while any(left):
        planned = [(number, *stretches.pop(0)) for number, stretches in enumerate(left) if stretches]
        yield sorted(planned, key=lambda item: item[2] - item[1] > 1)


@torch.inference_mode()
def check_flat_runs(
    language: Any, *, position_rows: int = 1, num_mutual: int = 0, is_packed: bool = False, tolerance: float = 1e-4
) -> None:
    """`tolerance` is relative to the spread of the logits; below 0.001 the greatest must be the same everywhere."""
    talks = make_talks(language, position_rows, num_mutual)
    expected = outputs_one_by_one(language, talks)  # first: who is packed may not know `forward` any more
    if is_packed:
        language.pack()
    for wanted, got in zip(_flat(expected), _flat(outputs_together(language, talks)), strict=True):
        _check_close(got.logits, wanted.logits, tolerance)
        if tolerance < 1e-3:
            assert torch.equal(got.logits.argmax(-1), wanted.logits.argmax(-1))
        assert (got.hidden is None) == (wanted.hidden is None)
        if got.hidden is not None and wanted.hidden is not None:
            _check_close(got.hidden.float(), wanted.hidden.float(), tolerance)
    greatest = {int(wanted.logits.argmax()) for wanted in _flat(expected)}
    assert len(greatest) > 5, "the outputs should be told apart"


def _flat(outputs: Sequence[Sequence[Output]]) -> list[Output]:
    return [output for each in outputs for output in each]


def _check_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * float(wanted.std()))
