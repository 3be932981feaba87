"""The slowest way to Moondream's answers: one request, greedy, a growing cache, the rules asked at every token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from deployments.models.family import Prompt, Rules
from deployments.types import Box, Point


@dataclass(slots=True)
class Answer:
    chosen: list[int] = field(default_factory=list)  # every token that was chosen, also where it meant nothing
    token_ids: list[int] = field(default_factory=list)  # of the answer's text
    phrases: list[list[int]] = field(default_factory=lambda: [[]])  # of the thoughts
    points: list[list[Point]] = field(default_factory=lambda: [[]])  # of each phrase
    found: list[Box | Point] = field(default_factory=list)
    ended: bool = False  # by itself, not by `max_new_tokens`


@torch.inference_mode()
def answer(language: Any, prompt: Prompt, features: torch.Tensor | None, max_new_tokens: int) -> Answer:
    cache, result = DynamicCache(), Answer()
    rules = language.open_rules(prompt, max_new_tokens)
    positions = torch.from_numpy(prompt.positions[:, None].copy())
    output = language.forward(embed(language, prompt, features), positions, cache, mask_of(prompt))
    position = prompt.next_position
    while True:
        token_id = choose(output.logits[0], rules)
        ruling = rules.accept(token_id, output.hidden[0])
        result.chosen.append(token_id)
        if ruling.found is not None:
            result.found.append(ruling.found)  # also with the last token
        if ruling.begins_phrase:
            result.phrases.append([])
            result.points.append([])
        if ruling.grounding is not None:
            result.points[-1].append(ruling.grounding)
        if ruling.is_last:
            result.ended = True
            return result
        if ruling.kind == "thought":
            result.phrases[-1].append(token_id)
        if ruling.kind == "answer":
            result.token_ids.append(token_id)
            if len(result.token_ids) == max_new_tokens:
                return result
        embedding = ruling.embedding
        if embedding is None:
            embedding = language.embed(torch.tensor([[ruling.token_id]]))[0, 0]
        mask = torch.ones(1, 1, 1, position + 1, dtype=torch.bool)
        output = language.forward(embedding[None, None], torch.full((1, 1, 1), position), cache, mask)
        position += 1


def choose(logits: torch.Tensor, rules: Rules) -> int:
    logits = logits.clone()
    logits[list(rules.banned_token_ids())] = -torch.inf
    return int(logits.argmax())


def embed(language: Any, prompt: Prompt, features: torch.Tensor | None) -> torch.Tensor:
    """(1, S, D)."""
    embeddings = language.embed(torch.tensor([prompt.token_ids])).clone()
    for span in prompt.images:
        assert features is not None
        embeddings[0, span.start : span.start + span.length] = language.project(features)
    for index, coordinates in prompt.places:
        embeddings[0, index] = language.embed_place(coordinates)
    return embeddings


def mask_of(prompt: Prompt) -> torch.Tensor:
    """(1, 1, S, S)."""
    mask = torch.ones(len(prompt.token_ids), len(prompt.token_ids), dtype=torch.bool).tril()
    mask[: prompt.num_mutual, : prompt.num_mutual] = True
    return mask[None, None]
