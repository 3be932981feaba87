"""A language model with rules that use all that rules may do, and the plain loop that its answers must equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from generator.letters import PLACEHOLDER, VOCAB_SIZE, features_of

from deployments.models.causal import CausalLanguage
from deployments.models.family import Attend, Output, Prompt, Ruling
from deployments.types import Box, DetectTask, GenerateRequest, Grounding, Point, QueryTask

BINS = 32  # a hidden state speaks of two numbers, by its first and by its second half of so many values
MIDDLE = 100  # tokens below are low, the others high
BRIDGE_ID = 100  # goes into the model between thoughts and answer
PHRASE_LETTERS = 5  # of a thought, then a point


class RuledLanguage(CausalLanguage):
    """A Llama that shows its hidden states; detecting and thinking have rules, everything else is plain."""

    def __init__(self, llama: Any) -> None:
        super().__init__(llama)
        self.llama = llama

    def open_rules(self, prompt: Prompt, max_new_tokens: int) -> FindingRules | ThinkingRules | None:
        if isinstance(prompt.task, DetectTask):
            return FindingRules(self.llama, prompt.task.max_objects)
        if isinstance(prompt.task, QueryTask) and prompt.task.reasoning:
            return ThinkingRules(self.llama, max_new_tokens)
        return None

    def run(self, embeddings: torch.Tensor, positions: torch.Tensor, attend: Attend, last: torch.Tensor) -> Output:
        assert self._fused is not None
        hidden = self._fused.run(embeddings, positions[0], attend, last)
        return Output(self.llama.lm_head(hidden).float(), hidden)

    def forward(self, embeddings: torch.Tensor, positions: torch.Tensor, cache: Any, mask: torch.Tensor) -> Output:
        hidden = self.llama.model(
            inputs_embeds=embeddings, position_ids=positions[0], past_key_values=cache, attention_mask=mask
        ).last_hidden_state[:, -1]
        return Output(self.llama.lm_head(hidden).float(), hidden)


def read_point(llama: Any, hidden: torch.Tensor) -> tuple[Point, torch.Tensor]:
    """The point that (D,) `hidden` speaks of, and what goes into the model next (D,)."""
    x, y = (int(half.argmax()) for half in hidden.split(BINS))
    embeddings = llama.get_input_embeddings().weight
    return Point(x / BINS, y / BINS), (embeddings[x] + embeddings[y]) / 2


class FindingRules:
    """Two letters, a high one and a low one, then a box or a point: so on until enough are found."""

    def __init__(self, llama: Any, max_objects: int) -> None:
        self._llama = llama
        self._max_objects = max_objects
        self._num_found = 0
        self._letters: list[int] = []

    def banned_token_ids(self) -> Sequence[int]:
        return range(MIDDLE) if not self._letters else range(MIDDLE, VOCAB_SIZE)

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        if self._num_found == self._max_objects:
            return Ruling(is_last=True)
        if len(self._letters) < 2:
            self._letters.append(token_id)
            return Ruling(token_id=token_id)
        self._letters.clear()
        self._num_found += 1
        point, embedding = read_point(self._llama, hidden)
        found = point if self._num_found % 2 else Box(0.0, point.y, point.x, 1.0)
        return Ruling(embedding=embedding, kind="silent", found=found)


class ThinkingRules:
    """Phrases of letters, every second one with points, as many as the answer may have; a bridge; then the answer."""

    def __init__(self, llama: Any, max_new_tokens: int) -> None:
        self._llama = llama
        self._num_thoughts_left = max_new_tokens
        self._num_steps = 0
        self._is_answering = False
        self._num_answered = 0

    def banned_token_ids(self) -> Sequence[int]:
        return range(MIDDLE) if self._is_answering else ()

    def accept(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        if self._is_answering:
            self._num_answered += 1
            return Ruling(token_id=token_id, is_last=self._num_answered == 8)
        if self._num_thoughts_left == 0:
            self._is_answering = True
            return Ruling(token_id=BRIDGE_ID, kind="silent")
        self._num_thoughts_left -= 1
        self._num_steps += 1
        return self._think(token_id, hidden)

    def _think(self, token_id: int, hidden: torch.Tensor) -> Ruling:
        place = self._num_steps % (2 * PHRASE_LETTERS)
        if place in (3, 4):
            point, embedding = read_point(self._llama, hidden)
            return Ruling(embedding=embedding, kind="thought", grounding=point)
        return Ruling(token_id=token_id, kind="thought", begins_phrase=place in (0, PHRASE_LETTERS))


@dataclass
class Expected:
    """What an answer must hold, token by token."""

    answer: list[int] = field(default_factory=list)
    thought: list[int] = field(default_factory=list)
    found: list[Box | Point] = field(default_factory=list)
    grounding: list[Grounding] = field(default_factory=list)
    num_chosen: int = 0
    is_last: bool = False


def follow_rules(llama: Any, request: GenerateRequest, prompt: Prompt, max_steps: int = 1000) -> Expected:
    """The answer as a plain loop over transformers' model makes it: one token at a time, the whole text every time."""
    rules = RuledLanguage(llama).open_rules(prompt, request.sampling.max_new_tokens)
    assert rules is not None
    expected, points, start = Expected(), [], 0
    inputs = _embed(llama, request, prompt)
    while expected.num_chosen < max_steps and len(expected.answer) < request.sampling.max_new_tokens:
        hidden = llama.model(inputs_embeds=inputs).last_hidden_state[0, -1]
        logits = llama.lm_head(hidden).clone()
        logits[list(rules.banned_token_ids())] = -torch.inf
        token_id = int(logits.argmax())
        ruling = rules.accept(token_id, hidden)
        if ruling.is_last:
            expected.is_last = True
            break
        expected.num_chosen += 1
        embedding = ruling.embedding
        if embedding is None:
            embedding = llama.get_input_embeddings().weight[ruling.token_id]
        inputs = torch.cat([inputs, embedding[None, None]], dim=1)
        expected.found += [ruling.found] if ruling.found else []
        if ruling.kind == "answer":
            expected.answer.append(token_id)
        if ruling.begins_phrase:
            _end_phrase(expected, start, points)
            start, points = len(expected.thought), []
        if ruling.kind == "thought":
            expected.thought.append(token_id)
        points += [ruling.grounding] if ruling.grounding else []
    _end_phrase(expected, start, points)
    return expected


def _end_phrase(expected: Expected, start: int, points: list[Point]) -> None:
    if points:
        expected.grounding.append(Grounding(start, len(expected.thought), tuple(points)))


def _embed(llama: Any, request: GenerateRequest, prompt: Prompt) -> torch.Tensor:
    ids = torch.tensor([prompt.token_ids])
    embeddings = llama.get_input_embeddings()(ids).detach().clone()
    rows = [torch.from_numpy(features_of(image)) for image in request.messages[0].images]
    if rows:
        embeddings[ids == PLACEHOLDER] = torch.cat(rows)
    return embeddings
