"""Carries out the scheduler's plans on the model: many sequences at once over one cache of slots."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

import torch

from deployments.generator.choosing import Rows, choose, prepare
from deployments.generator.input_embeddings import embed_next, embed_prompt
from deployments.generator.kv_cache import SlotCache
from deployments.generator.scheduler import Plan, Prefill, Row, plan_step
from deployments.generator.sequence import Sequence
from deployments.generator.step import Step
from deployments.models.family import LanguageModel, Output


class BatchRunner:
    def __init__(self, language: LanguageModel, num_slots: int, context_tokens: int, prefill_chunk_tokens: int) -> None:
        self.num_slots = num_slots
        self._language = language
        self._chunk = prefill_chunk_tokens
        self._cache = SlotCache(
            num_layers=language.num_layers,
            num_slots=num_slots,
            num_kv_heads=language.num_kv_heads,
            context_tokens=context_tokens,
            head_dim=language.head_dim,
            dtype=language.dtype,
            device=language.device,
        )
        self.num_cache_bytes = self._cache.num_bytes

    def step(self, sequences: SequenceOf[Sequence]) -> Step:
        by_number = {sequence.number: sequence for sequence in sequences}
        plan = plan_step([_to_row(sequence) for sequence in sequences], self.num_slots, self._chunk)
        self._move(plan, by_number)
        step = Step(num_prefill_tokens=plan.num_prefill_tokens, num_decodes=len(plan.decodes))
        rows: Rows = []
        for prefill in plan.prefills:
            self._try_prefill(prefill, by_number[prefill.number], rows, step)
        if plan.decodes:
            self._try_decode([by_number[number] for number in plan.decodes], rows, step)
        choose(rows, step)
        return step

    def release(self, sequence: Sequence) -> None:
        sequence.let_go()
        if sequence.slot is not None:
            self._cache.clear(sequence.slot, sequence.num_positions)
            sequence.slot = None

    def problems(self) -> list[str]:
        used = [slot for slot in range(self.num_slots) if not self._cache.is_clear(slot)]
        return [f"KV slots {used} are not clear"] if used else []

    def _move(self, plan: Plan, by_number: Mapping[int, Sequence]) -> None:
        for move in plan.moves:
            sequence = by_number[move.number]
            self._cache.move(move.source, move.target, sequence.num_positions)
            sequence.slot = move.target

    def _try_prefill(self, prefill: Prefill, sequence: Sequence, rows: Rows, step: Step) -> None:
        sequence.slot = prefill.slot
        if prefill.start == 0:
            sequence.marks.prefill_began = time.monotonic()
        try:
            output = self._prefill(prefill, sequence)
        except Exception as error:  # whatever it is, it is this sequence's own
            step.failures.append((sequence, error))
            return
        sequence.num_prefilled += prefill.length
        if sequence.is_prefilled:
            rows.append(([sequence], output))

    def _prefill(self, prefill: Prefill, sequence: Sequence) -> Output:
        stop = prefill.start + prefill.length
        if prefill.start == 0:
            prepare(sequence, self._language)
        embeddings = embed_prompt(self._language, sequence, prefill.start, stop)
        positions = torch.from_numpy(sequence.prompt.positions[:, None, prefill.start : stop].copy())
        mask = self._cache.prefill_window(prefill.slot, prefill.start, prefill.length, sequence.prompt.num_mutual)
        return self._language.forward(embeddings, positions.to(self._language.device), self._cache, mask)

    def _try_decode(self, batch: SequenceOf[Sequence], rows: Rows, step: Step) -> None:
        try:
            rows.append((batch, self._decode(batch)))
        except Exception as error:  # one pass for all of them: nothing tells whose fault it was
            step.failures += [(sequence, error) for sequence in batch]

    def _decode(self, batch: SequenceOf[Sequence]) -> Output:
        """One more token for each; the sequence at index i sits in slot i."""
        writes = [sequence.next_index for sequence in batch]
        inputs = torch.tensor(
            [
                [sequence.next_token_id for sequence in batch],
                writes,
                [sequence.next_position for sequence in batch],
            ]
        )
        # One transfer for all three; pinned, so that the host need not wait for it.
        if self._language.device.type == "cuda":
            inputs = inputs.pin_memory()
        ids, slots_positions, positions = inputs.to(self._language.device, non_blocking=True)
        position_rows = batch[0].prompt.positions.shape[0]
        mask = self._cache.decode_window(slots_positions, max(writes))
        embeddings = embed_next(self._language, ids, batch)
        return self._language.forward(
            embeddings, positions[None, :, None].expand(position_rows, -1, 1), self._cache, mask
        )


def _to_row(sequence: Sequence) -> Row:
    prompt = sequence.prompt
    return Row(sequence.number, len(prompt.token_ids), sequence.num_prefilled, sequence.slot, prompt.num_mutual)
