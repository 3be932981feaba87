"""Chooses the next token of every row of a step: rules and penalties have their say, then one draw for all."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from deployments.generator.repetition import Repetition, penalize
from deployments.generator.sampling import NOT_A_TOKEN, open_rng, sample
from deployments.generator.sequence import Sequence
from deployments.generator.step import Step
from deployments.models.family import LanguageModel, Output

Rows = list[tuple[SequenceOf[Sequence], Output]]  # who waits for a token, and what the model gave them


def prepare(sequence: Sequence, language: LanguageModel) -> None:
    """Give a sequence what its choices need, before its first pass. Raises what the model's rules raise."""
    sampling, penalty = sequence.sampling, sequence.sampling.repetition_penalty
    sequence.rng = open_rng(sampling, language.device)
    if penalty is not None and penalty != 1:
        sequence.repetition = Repetition(
            penalty,
            sequence.prompt.token_ids,
            max_more=sequence.max_positions - sequence.num_prompt_tokens,
            vocab_size=language.vocab_size,
            device=language.device,
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
        logits = logits.contiguous()
        penalize(logits, [sequence.repetition for sequence in batch])
        broken = _ban(logits, batch, step)
        ids = sample(logits, [sequence.sampling for sequence in batch], [sequence.rng for sequence in batch])
        _remember(batch, ids)
    except Exception as error:  # one choice for all of them: nothing tells whose fault it was
        step.failures += [(sequence, error) for sequence in batch if sequence not in broken]
        return
    step.tokens += [pair for pair in zip(batch, ids, strict=True) if pair[0] not in broken]
    _keep_hidden(rows, step)


def _ban(logits: torch.Tensor, batch: SequenceOf[Sequence], step: Step) -> set[Sequence]:
    """Rule out, in place, what a row's rules forbid; returns the sequences whose rules failed."""
    broken: set[Sequence] = set()
    for row, sequence in enumerate(batch):
        if sequence.rules is None:
            continue
        try:
            # One by one: they are few, and writing a number, unlike indices, need not wait for the device.
            for token_id in sequence.rules.banned_token_ids():
                logits[row, token_id] = -torch.inf
        except Exception as error:  # its own rules: the others go on
            step.failures.append((sequence, error))
            broken.add(sequence)
    return broken


def _remember(batch: SequenceOf[Sequence], token_ids: SequenceOf[int]) -> None:
    for sequence, token_id in zip(batch, token_ids, strict=True):
        if sequence.repetition is not None and token_id != NOT_A_TOKEN:
            sequence.repetition.add(token_id)


def _keep_hidden(rows: Rows, step: Step) -> None:
    for sequences, output in rows:
        if output.hidden is not None:
            for row, sequence in enumerate(sequences):
                if sequence.rules is not None:
                    step.hidden[sequence] = output.hidden[row]
