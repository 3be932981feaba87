"""How Moondream's answers are made: texts, thoughts before them, and points and boxes read from hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deployments.models.family import Prompt, Rules, Ruling
from deployments.models.moondream_modules import Region
from deployments.models.moondream_tokens import TokenIds
from deployments.types import Box, DetectTask, Point, PointTask, QueryTask

LEAST_SIZE_LOG2 = -10.0  # the first bin of a width or height; the last stands for the whole picture


def open_rules(tokens: TokenIds, region: Region, prompt: Prompt, max_new_tokens: int) -> Rules:
    task = prompt.task
    if isinstance(task, DetectTask | PointTask):
        return RegionRules(tokens, region, task)
    if isinstance(task, QueryTask) and task.reasoning:
        return ReasoningRules(tokens, region, max_new_tokens)
    return AnswerRules(tokens)


class AnswerRules:
    """Text up to the end token. `answer_id` may be the first token, as in the published code, and none after it."""

    def __init__(self, tokens: TokenIds) -> None:
        self._tokens = tokens
        self._has_begun = False

    def banned_token_ids(self) -> Sequence[int]:
        answer_id = self._tokens.answer_id
        return (answer_id,) if self._has_begun and answer_id is not None else ()

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        self._has_begun = True
        return Ruling(token_id=token_id, is_last=token_id == self._tokens.eos_id)

    def resume(self, token_ids: Sequence[int]) -> None:
        self._has_begun = self._has_begun or bool(token_ids)


class ReasoningRules:
    """Thoughts up to `answer_id` or to so many tokens, then the suffix of a question, then an answer like any other."""

    def __init__(self, tokens: TokenIds, region: Region, max_thought_tokens: int) -> None:
        assert tokens.query is not None, "the prompt's writer refuses this"
        self._tokens = tokens
        self._region = region
        self._max_thought_tokens = max_thought_tokens
        self._num_thoughts = 0
        self._coordinates: list[float] = []  # of the present phrase
        self._suffix = list(tokens.query.suffix)  # what of it is not yet fed
        self._answer: AnswerRules | None = None  # None: still thinking

    def banned_token_ids(self) -> Sequence[int]:
        if self._answer is not None:
            return () if self._suffix else self._answer.banned_token_ids()
        if self._num_thoughts == 0:
            return ()
        return [i for i in (self._tokens.eos_id, self._tokens.size_id) if i is not None]

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        if self._answer is not None and not self._suffix:
            return self._answer.accept(token_id, hidden)
        is_over = token_id == self._tokens.answer_id or self._num_thoughts == self._max_thought_tokens
        if self._answer is not None or is_over:
            self._answer = self._answer or AnswerRules(self._tokens)
            return Ruling(token_id=self._suffix.pop(0), kind="silent")
        self._num_thoughts += 1
        return self._think(token_id, hidden)

    def _think(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        if token_id == self._tokens.coord_id:
            coordinate, embedding = read_coordinate(self._region, hidden)
            self._coordinates.append(coordinate)
            is_pair = len(self._coordinates) % 2 == 0
            grounding = Point(*self._coordinates[-2:]) if is_pair else None
            return Ruling(embedding=embedding, kind="thought", grounding=grounding)
        begins_phrase = token_id in (self._tokens.start_ground_points_id, self._tokens.end_ground_id)
        if begins_phrase:
            self._coordinates.clear()
        return Ruling(token_id=token_id, kind="thought", begins_phrase=begins_phrase)


class RegionRules:
    """Boxes or points. A token other than the end token announces one; x, y and, of a box, its size are read from the
    hidden states that follow, whatever tokens are chosen there.
    """

    def __init__(self, tokens: TokenIds, region: Region, task: DetectTask | PointTask) -> None:
        self._eos_id = tokens.eos_id
        self._region = region
        self._finds_boxes = isinstance(task, DetectTask)
        self._num_missing = task.max_objects
        self._coordinates: list[float] = []  # of the present object

    def banned_token_ids(self) -> Sequence[int]:
        return ()

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        if not self._coordinates and (token_id == self._eos_id or self._num_missing <= 0):
            return Ruling(kind="silent", is_last=True)
        if len(self._coordinates) == 2:
            return self._finish_box(hidden)
        coordinate, embedding = read_coordinate(self._region, hidden)
        self._coordinates.append(coordinate)
        if self._finds_boxes or len(self._coordinates) == 1:
            return Ruling(embedding=embedding, kind="silent")
        return self._find(Point(*self._coordinates), embedding)

    def _finish_box(self, hidden: torch.Tensor) -> Ruling:
        (x, y), (width, height) = self._coordinates, read_size(self._region, hidden)
        size = torch.tensor([width, height], dtype=hidden.dtype, device=hidden.device)
        box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return self._find(box, self._region.encode_size(size))

    def _find(self, found: Box | Point, embedding: torch.Tensor) -> Ruling:
        self._coordinates.clear()
        self._num_missing -= 1
        return Ruling(embedding=embedding, kind="silent", found=found, is_last=self._num_missing <= 0)


def read_coordinate(region: Region, hidden: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The coordinate that (D,) hidden speaks of, and its embedding (D,). Waits for the device."""
    logits = region.coordinate_logits(hidden)  # (bins,)
    share = int(logits.argmax(dim=-1)) / logits.shape[-1]
    embedding = region.encode_coordinate(torch.tensor([share], dtype=hidden.dtype, device=hidden.device))
    return share, embedding


def read_size(region: Region, hidden: torch.Tensor) -> tuple[float, float]:
    """The width and the height that (D,) hidden speaks of, as shares of the picture's. Waits for the device."""
    logits = region.size_logits(hidden)  # (2, bins)
    steps = logits.argmax(dim=-1).cpu().float() / (logits.shape[-1] - 1)
    width, height = torch.pow(2.0, steps * -LEAST_SIZE_LOG2 + LEAST_SIZE_LOG2).tolist()
    return width, height
