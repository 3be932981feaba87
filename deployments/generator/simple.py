"""The slow twin of `runner.py`: one request at a time, whole prompt at once, transformers' own growing cache.

No scheduler, no slots, no chunks, no batch. Tests hold the fast one against it; use it when in doubt about an answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf

import torch
from transformers import DynamicCache

from deployments.generator.prompt_embeddings import embed_prompt
from deployments.generator.sampling import open_rng, sample
from deployments.generator.sequence import Sequence
from deployments.generator.step import Step
from deployments.models.family import LanguageModel


class SimpleRunner:
    num_slots = 1
    num_cache_bytes = 0  # it grows and goes with each request

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self._current: Sequence | None = None
        self._cache = DynamicCache()

    def step(self, sequences: SequenceOf[Sequence]) -> Step:
        sequence = self._current or self._begin(sequences[0])
        step = Step()
        try:
            logits = self._decode(sequence, step) if sequence.token_ids else self._prefill(sequence, step)
            [token_id] = sample(logits, [sequence.sampling], [sequence.rng])
        except Exception as error:  # only one request is computed, so it is its own
            step.failures.append((sequence, error))
        else:
            step.tokens.append((sequence, token_id))
        return step

    def release(self, sequence: Sequence) -> None:
        sequence.image_rows, sequence.slot = None, None
        if sequence is self._current:
            self._current, self._cache = None, DynamicCache()

    def problems(self) -> list[str]:
        return [] if self._current is None else [f"request {self._current.request_id} is still there"]

    def _begin(self, sequence: Sequence) -> Sequence:
        self._current, sequence.slot = sequence, 0
        sequence.rng = open_rng(sequence.sampling, self._language.device)
        sequence.marks.prefill_began = time.monotonic()
        return sequence

    def _prefill(self, sequence: Sequence, step: Step) -> torch.Tensor:
        length = step.num_prefill_tokens = sequence.num_prompt_tokens
        embeddings = embed_prompt(self._language, sequence, 0, length)
        causal = torch.ones(length, length, dtype=torch.bool, device=self._language.device).tril()
        positions = torch.from_numpy(sequence.prompt.positions[:, None].copy()).to(self._language.device)
        logits = self._language.forward(embeddings, positions, self._cache, causal[None, None]).logits
        sequence.num_prefilled = length
        return logits

    def _decode(self, sequence: Sequence, step: Step) -> torch.Tensor:
        step.num_decodes = 1
        device, prompt = self._language.device, sequence.prompt
        position = prompt.next_position + len(sequence.token_ids) - 1
        positions = torch.full((prompt.positions.shape[0], 1, 1), position, device=device)
        mask = torch.ones(1, 1, 1, sequence.num_positions, dtype=torch.bool, device=device)
        embeddings = self._language.embed(torch.tensor([sequence.token_ids[-1:]], device=device))
        return self._language.forward(embeddings, positions, self._cache, mask).logits
