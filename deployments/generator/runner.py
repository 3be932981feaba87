"""Carries out the scheduler's plans on the model: one flat pass for those who decode and for stretches of prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from deployments.generator.choosing import Rows, choose, prepare
from deployments.generator.chunk_pace import ChunkPace
from deployments.generator.continuation import catch_up
from deployments.generator.input_embeddings import embed_next, embed_prompt
from deployments.generator.kv_cache import SlotCache
from deployments.generator.prefix_cache import PrefixCache
from deployments.generator.prefix_tree import NO_MATCH
from deployments.generator.prompt_contents import answer_contents
from deployments.generator.sampling import NOT_A_TOKEN
from deployments.generator.scheduler import Plan, Prefill, Row, plan_step
from deployments.generator.sequence import Sequence
from deployments.generator.slot_attention import Piece, SlotAttention
from deployments.generator.static_decode import Capture, StaticDecode
from deployments.generator.step import Step
from deployments.models.family import LanguageModel, Output

logger = logging.getLogger(__name__)

# Passes with stretches of prompts are filled up to a multiple of this, so that shapes repeat: oneDNN builds, and keeps,
# a kernel for each new one.
ROW_STEP = 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of what was given to a sequence that this step computes."""

    sequence: Sequence
    prefill: Prefill
    embeddings: torch.Tensor  # (S, D)

    @property
    def piece(self) -> Piece:
        prefill = self.prefill
        return Piece(prefill.slot, prefill.start, prefill.length, self.sequence.prompt.num_mutual)

    @property
    def positions(self) -> np.ndarray:
        """(position_rows, S) int64."""
        return self.sequence.given.positions[:, self.prefill.start : self.prefill.start + self.prefill.length]

    @property
    def is_last(self) -> bool:
        return self.prefill.start + self.prefill.length == self.sequence.num_given_tokens


class BatchRunner:
    def __init__(
        self,
        language: LanguageModel,
        num_slots: int,
        context_tokens: int,
        prefill_chunk_tokens: int,
        prefix_cache_bytes: int = 0,
        capture: Capture | None = None,
    ) -> None:
        """`capture` makes steps in which all rows decode replays of fixed shape; None: they are run as they come."""
        self.num_slots = num_slots
        self._language = language
        self._pace = ChunkPace(prefill_chunk_tokens)
        self._cache = SlotCache(
            num_layers=language.num_layers,
            num_slots=num_slots,
            num_kv_heads=language.num_kv_heads,
            context_tokens=context_tokens,
            head_dim=language.head_dim,
            dtype=language.dtype,
            device=language.device,
            has_scratch=capture is not None,  # replays with more rows than sequences write what is no token's there
        )
        self._capture = capture
        self._static: StaticDecode | None = None  # once the number of position rows is known
        self.prefix = PrefixCache(self._cache, prefix_cache_bytes)
        self.num_cache_bytes = self._cache.num_bytes + self.prefix.num_bytes

    def step(self, sequences: SequenceOf[Sequence]) -> Step:
        began = time.monotonic()
        by_number = {sequence.number: sequence for sequence in sequences}
        plan = self._plan(sequences)
        self._move(plan, by_number)
        batch = [by_number[number] for number in plan.decodes]
        step = Step(num_prefill_tokens=plan.num_prefill_tokens, num_decodes=len(batch))
        stretches = [
            stretch
            for prefill in plan.prefills
            if (stretch := self._try_begin(prefill, by_number[prefill.number], step)) is not None
        ]
        rows: Rows = []
        self._try_run(batch, stretches, rows, step)
        choose(rows, step)
        self._remember_prompts(stretches, step)
        self._pace.observe(time.monotonic() - began, len(batch), plan.num_prefill_tokens)
        return step

    def release(self, sequence: Sequence) -> None:
        self.prefix.unpin(sequence.match)
        sequence.match = NO_MATCH
        if sequence.slot is not None:
            if sequence.is_finished and sequence.rules is None:
                self._remember_answer(sequence)
            self._cache.clear(sequence.slot, sequence.num_positions)
            sequence.slot = None
        sequence.let_go()

    def problems(self) -> list[str]:
        used = [slot for slot in range(self.num_slots) if not self._cache.is_clear(slot)]
        return [*([f"KV slots {used} are not clear"] if used else []), *self.prefix.problems()]

    # ------------------------------------------------------------------ deciding what is computed

    def _plan(self, sequences: SequenceOf[Sequence]) -> Plan:
        num_decoding = sum(sequence.slot is not None and sequence.is_prefilled for sequence in sequences)
        waiting = [sequence for sequence in sequences if sequence.slot is None]
        for sequence in sorted(waiting, key=lambda item: (-item.priority, item.number))[: self.num_slots]:
            self._look_up(sequence)
        chunk_tokens = self._pace.tokens(num_decoding)
        return plan_step([_to_row(sequence) for sequence in sequences], self.num_slots, chunk_tokens)

    def _look_up(self, sequence: Sequence) -> None:
        """Others may have computed a longer beginning since this one was looked up."""
        version = self.prefix.version
        if sequence.match_version == version or not sequence.contents:
            return
        match = self.prefix.match(sequence.realm, sequence.contents, least=sequence.prompt.num_mutual)
        if match.num_tokens <= sequence.match.num_tokens:
            match, sequence.match = sequence.match, match
        self.prefix.unpin(sequence.match)
        sequence.match, sequence.match_version = match, version
        sequence.num_prefilled = match.num_tokens

    def _move(self, plan: Plan, by_number: Mapping[int, Sequence]) -> None:
        for move in plan.moves:
            sequence = by_number[move.number]
            self._cache.move(move.source, move.target, sequence.num_positions)
            sequence.slot = move.target

    # ------------------------------------------------------------------ computing it

    def _try_begin(self, prefill: Prefill, sequence: Sequence, step: Step) -> Stretch | None:
        try:
            return self._begin(prefill, sequence, step)
        except Exception as error:  # whatever it is, it is this sequence's own
            step.failures.append((sequence, error))
            return None

    def _begin(self, prefill: Prefill, sequence: Sequence, step: Step) -> Stretch:
        if sequence.slot is None:
            sequence.slot = prefill.slot
            sequence.marks.prefill_began = time.monotonic()
            prepare(sequence, self._language)
            catch_up(sequence)
            self.prefix.restore(sequence.match, prefill.slot)
            sequence.num_reused = sequence.match.num_tokens
            step.num_reused_tokens += sequence.num_reused
            self.prefix.unpin(sequence.match)
            sequence.match = NO_MATCH
        embeddings = embed_prompt(self._language, sequence, prefill.start, prefill.start + prefill.length)
        return Stretch(sequence, prefill, embeddings[0])

    def _try_run(self, batch: SequenceOf[Sequence], stretches: SequenceOf[Stretch], rows: Rows, step: Step) -> None:
        """All in one pass. When that fails, each by itself, so that only whose fault it is has to go; nothing is lost
        by it, since a pass writes the same K/V again."""
        if not batch and not stretches:
            return
        try:
            output = self._run(batch, stretches)
        except Exception as error:
            if len(stretches) + bool(batch) == 1:  # of those who decode in one pass, nothing tells whose fault it was
                step.failures += [(sequence, error) for sequence in [*batch, *(item.sequence for item in stretches)]]
                return
            logger.warning("a pass over %d parts failed; each is tried alone", len(stretches) + bool(batch))
            self._try_run(batch, [], rows, step)
            for stretch in stretches:
                self._try_run([], [stretch], rows, step)
            return
        for stretch in stretches:
            stretch.sequence.num_prefilled += stretch.prefill.length
        asking = [*batch, *(stretch.sequence for stretch in stretches if stretch.is_last)]
        if asking:
            rows.append((asking, output))

    def _run(self, batch: SequenceOf[Sequence], stretches: SequenceOf[Stretch]) -> Output:
        """Outputs of the decoding rows and of those prompts that end here. The sequence at index i sits in slot i."""
        if batch and not stretches and self._capture is not None and _is_plain(batch):
            return self._replay(batch, self._capture)
        device, count = self._language.device, len(batch)
        embeddings = [stretch.embeddings for stretch in stretches]
        if batch:
            ids = torch.tensor([sequence.next_token_id for sequence in batch], device=device)
            embeddings.insert(0, embed_next(self._language, ids, batch)[:, 0])
        ends = np.cumsum([stretch.prefill.length for stretch in stretches], dtype=np.int64) + count - 1
        last = [*range(count), *(int(end) for end, item in zip(ends, stretches, strict=True) if item.is_last)]
        positions = _positions(batch, stretches)  # (position_rows, N)
        attention = SlotAttention(
            self._cache,
            [sequence.next_index for sequence in batch],
            [stretch.piece for stretch in stretches],
            num_padding := -positions.shape[1] % ROW_STEP if stretches else 0,
        )
        if num_padding:
            positions = np.pad(positions, ((0, 0), (0, num_padding)))
            embeddings.append(embeddings[0].new_zeros(num_padding, embeddings[0].shape[1]))
        return self._language.run(
            embeddings[0] if len(embeddings) == 1 else torch.cat(embeddings),
            torch.from_numpy(positions).to(device),
            attention,
            torch.tensor(last, dtype=torch.int64, device=device),
        )

    def _replay(self, batch: SequenceOf[Sequence], capture: Capture) -> Output:
        if self._static is None:
            position_rows = batch[0].prompt.positions.shape[0]
            self._static = StaticDecode(self._language, self._cache, position_rows, self.num_slots, capture)
        return self._static.run(
            [sequence.next_token_id for sequence in batch],
            [sequence.next_index for sequence in batch],
            [sequence.next_position for sequence in batch],
        )

    # ------------------------------------------------------------------ remembering it

    def _remember_prompts(self, stretches: SequenceOf[Stretch], step: Step) -> None:
        """Only of those whose first token could be chosen: numbers that are none must not come back with others."""
        sound = {sequence for sequence, token_id in step.tokens if token_id != NOT_A_TOKEN}
        for sequence in (stretch.sequence for stretch in stretches if stretch.is_last):
            if sequence in sound and sequence.slot is not None:
                self.prefix.remember(sequence.realm, sequence.contents, sequence.slot, sequence.prompt.num_mutual)

    def _remember_answer(self, sequence: Sequence) -> None:
        """The last token chosen may not have been computed any more."""
        assert sequence.slot is not None
        contents = [*sequence.contents, *answer_contents(sequence.token_ids[len(sequence.answered) : -1])]
        self.prefix.remember(sequence.realm, contents, sequence.slot, sequence.prompt.num_mutual)


def _to_row(sequence: Sequence) -> Row:
    return Row(
        sequence.number,
        sequence.num_given_tokens,
        sequence.num_prefilled,
        sequence.slot,
        sequence.prompt.num_mutual,
        sequence.priority,
    )


def _is_plain(batch: SequenceOf[Sequence]) -> bool:
    """Whether tokens alone go into the model."""
    return all(sequence.next_embedding is None for sequence in batch)


def _positions(batch: SequenceOf[Sequence], stretches: SequenceOf[Stretch]) -> np.ndarray:
    """(position_rows, N) int64."""
    parts = [stretch.positions for stretch in stretches]
    if batch:
        position_rows = batch[0].prompt.positions.shape[0]
        following = np.array([sequence.next_position for sequence in batch], dtype=np.int64)
        parts.insert(0, np.broadcast_to(following, (position_rows, len(batch))))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))
