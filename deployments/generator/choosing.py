"""Chooses the next token of every row of a step: masks, rules and penalties have their say, then one draw for all."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from deployments.errors import InvalidRequest
from deployments.generator.logprobs import read, score
from deployments.generator.penalties import Discount, take_off
from deployments.generator.repetition import Repetition, penalize
from deployments.generator.sampling import NOT_A_TOKEN, open_rng, sample
from deployments.generator.sequence import Sequence
from deployments.generator.step import Step
from deployments.generator.token_mask import read_mask, restrict
from deployments.models.family import LanguageModel, Output

Rows = list[tuple[SequenceOf[Sequence], Output]]  # who waits for a token, and what the model gave them


def prepare(sequence: Sequence, language: LanguageModel) -> None:
    """Give a sequence what its choices need, before its first pass. Raises what the model's rules raise."""
    sampling, penalty = sequence.sampling, sequence.sampling.repetition_penalty
    max_more = sequence.max_positions - sequence.num_prompt_tokens
    sequence.rng = open_rng(sampling)
    if penalty is not None and penalty != 1:
        sequence.repetition = Repetition(
            penalty,
            sequence.prompt.token_ids,
            max_more=max_more,
            vocab_size=language.vocab_size,
            device=language.device,
        )
    if sampling.presence_penalty or sampling.frequency_penalty:
        sequence.discount = Discount(
            sampling.presence_penalty, sampling.frequency_penalty, max_tokens=max_more, device=language.device
        )
    sequence.rules = language.open_rules(sequence.prompt, sequence.max_new_tokens)


def choose(rows: Rows, step: Step) -> None:
    """One choice, and one wait for the device, for all rows of the step; goes into `step`."""
    if not rows:
        return
    batch = [sequence for sequences, _ in rows for sequence in sequences]
    broken: set[Sequence] = set()
    try:
        logits = rows[0][1].logits if len(rows) == 1 else torch.cat([output.logits for _, output in rows])
        ids = _choose(logits.contiguous(), batch, step, broken)
    except Exception as error:  # one choice for all of them: nothing tells whose fault it was
        step.failures += [(sequence, error) for sequence in batch if sequence not in broken]
        return
    _remember(batch, ids, step, broken)
    step.tokens += [pair for pair in zip(batch, ids, strict=True) if pair[0] not in broken]
    _keep_hidden(rows, step)


def _choose(logits: torch.Tensor, batch: SequenceOf[Sequence], step: Step, broken: set[Sequence]) -> list[int]:
    """Changes the logits. Sequences whose own masks or rules failed are added to `broken` and told to `step`."""
    scored = score(logits, [sequence.sampling.num_logprobs for sequence in batch])
    penalize(logits, [sequence.repetition for sequence in batch])
    take_off(logits, [sequence.discount for sequence in batch])
    _restrict(logits, batch, step, broken)
    ids = sample(logits, [sequence.sampling for sequence in batch], [sequence.rng for sequence in batch])
    chosen, scores = read(ids, scored)
    if revised := _revise(chosen, batch, step, broken):
        for row, token_id in revised.items():
            ids[row] = token_id
        chosen, scores = read(ids, scored)
    for row, each in scores.items():
        batch[row].scores = each
    return chosen


def _restrict(logits: torch.Tensor, batch: SequenceOf[Sequence], step: Step, broken: set[Sequence]) -> None:
    """Rule out, in place, what a row's mask and rules forbid."""
    words: dict[int, torch.Tensor] = {}
    for row, sequence in enumerate(batch):
        try:
            if sequence.mask is not None:
                words[row] = _read_mask(sequence, logits.shape[-1])
            if sequence.rules is not None:
                # One by one: they are few, and writing a number, unlike indices, need not wait for the device.
                for token_id in sequence.rules.banned_token_ids():
                    logits[row, token_id] = -torch.inf
        except Exception as error:  # its own mask or rules: the others go on
            step.failures.append((sequence, error))
            broken.add(sequence)
    restrict(logits, words)


def _read_mask(sequence: Sequence, vocab_size: int) -> torch.Tensor:
    assert sequence.mask is not None
    words = read_mask(sequence.mask, vocab_size)
    if words is None:
        raise InvalidRequest(f"the grammar allows nothing after {len(sequence.token_ids)} tokens, not even an end")
    return words


def _revise(ids: SequenceOf[int], batch: SequenceOf[Sequence], step: Step, broken: set[Sequence]) -> dict[int, int]:
    """By row, the tokens that masks take in place of those that were drawn. No new draw: a token costs one number of
    its sequence's chance, whatever its mask says.
    """
    revised: dict[int, int] = {}
    for row, (sequence, token_id) in enumerate(zip(batch, ids, strict=True)):
        if sequence.mask is None or token_id == NOT_A_TOKEN or sequence in broken:
            continue
        try:
            taken = sequence.mask.revise(token_id)
        except Exception as error:  # its own mask: the others go on
            step.failures.append((sequence, error))
            broken.add(sequence)
        else:
            if taken != token_id:
                revised[row] = taken
    return revised


def _remember(batch: SequenceOf[Sequence], ids: SequenceOf[int], step: Step, broken: set[Sequence]) -> None:
    """Tell each sequence's memories what was chosen for it."""
    for sequence, token_id in zip(batch, ids, strict=True):
        if token_id == NOT_A_TOKEN or sequence in broken:
            continue
        try:
            _tell(sequence, token_id)
        except Exception as error:  # its own mask: the others go on
            step.failures.append((sequence, error))
            broken.add(sequence)


def _tell(sequence: Sequence, token_id: int) -> None:
    if sequence.repetition is not None:
        sequence.repetition.add(token_id)
    if sequence.discount is not None:
        sequence.discount.add(token_id)
    if sequence.mask is not None:
        sequence.mask.accept(token_id)


def _keep_hidden(rows: Rows, step: Step) -> None:
    for sequences, output in rows:
        if output.hidden is not None:
            for row, sequence in enumerate(sequences):
                if sequence.rules is not None:
                    step.hidden[sequence] = output.hidden[row]
