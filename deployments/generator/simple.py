"""The slow twin of `runner.py`: one request at a time, whole prompt at once, transformers' own growing cache.

No scheduler, no slots, no chunks, no batch. Tests hold the fast one against it; use it when in doubt about an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

import torch
from transformers import DynamicCache

from deployments.generator.choosing import choose, prepare
from deployments.generator.continuation import catch_up
from deployments.generator.input_embeddings import embed_next, embed_prompt
from deployments.generator.sequence import Sequence
from deployments.generator.step import Step
from deployments.models.family import LanguageModel, Output


class SimpleRunner:
    num_slots = 1
    num_cache_bytes = 0  # it grows and goes with each request
    prefix = None

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self._current: Sequence | None = None
        self._cache = DynamicCache()

    def step(self, sequences: SequenceOf[Sequence]) -> Step:
        sequence = self._current or self._begin(sequences[0])
        step = Step()
        try:
            output = self._decode(sequence, step) if sequence.is_prefilled else self._prefill(sequence, step)
        except Exception as error:  # only one request is computed, so it is its own
            step.failures.append((sequence, error))
        else:
            choose([([sequence], output)], step)
        return step

    def release(self, sequence: Sequence) -> None:
        sequence.let_go()
        sequence.slot = None
        if sequence is self._current:
            self._current, self._cache = None, DynamicCache()

    def problems(self) -> list[str]:
        return [] if self._current is None else [f"request {self._current.request_id} is still there"]

    def _begin(self, sequence: Sequence) -> Sequence:
        self._current, sequence.slot = sequence, 0
        sequence.marks.prefill_began = time.monotonic()
        return sequence

    def _prefill(self, sequence: Sequence, step: Step) -> Output:
        prepare(sequence, self._language)
        catch_up(sequence)
        length = step.num_prefill_tokens = sequence.num_given_tokens
        embeddings = embed_prompt(self._language, sequence, 0, length)
        mask = torch.ones(length, length, dtype=torch.bool, device=self._language.device).tril()
        num_mutual = sequence.given.num_mutual
        mask[:num_mutual, :num_mutual] = True
        positions = torch.from_numpy(sequence.given.positions[:, None].copy()).to(self._language.device)
        output = self._language.forward(embeddings, positions, self._cache, mask[None, None])
        sequence.num_prefilled = length
        return output

    def _decode(self, sequence: Sequence, step: Step) -> Output:
        step.num_decodes = 1
        device = self._language.device
        positions = torch.full((sequence.prompt.positions.shape[0], 1, 1), sequence.next_position, device=device)
        mask = torch.ones(1, 1, 1, sequence.num_positions, dtype=torch.bool, device=device)
        embeddings = embed_next(self._language, torch.tensor([sequence.next_token_id], device=device), [sequence])
        return self._language.forward(embeddings, positions, self._cache, mask)
