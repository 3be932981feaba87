"""Makes tokens less likely that the prompt or the answer already holds, as transformers' repetition_penalty does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


class Repetition:
    """What one sequence has said so far, and how much that counts against saying it again.

    A list of tokens, not a mask of the vocabulary: it is shorter by a factor of a hundred, and on CPUs that counts.
    """

    def __init__(
        self, penalty: float, token_ids: Iterable[int], *, max_more: int, vocab_size: int, device: torch.device
    ) -> None:
        """`token_ids` are the prompt's; at most `max_more` will be added."""
        self.penalty = penalty
        # Places of pictures may have ids that the vocabulary lacks.
        seen = sorted({token_id for token_id in token_ids if 0 <= token_id < vocab_size})
        self._seen = set(seen)
        self._room = torch.tensor([*seen, *[0] * max_more], dtype=torch.int64, device=device)

    @property
    def token_ids(self) -> torch.Tensor:
        """(num_seen,) int64, each once."""
        return self._room[: len(self._seen)]

    def add(self, token_id: int) -> None:
        if token_id not in self._seen:
            self._room[len(self._seen)] = token_id
            self._seen.add(token_id)

    def add_all(self, token_ids: Iterable[int]) -> None:
        """The same at once, for many."""
        new = sorted(set(token_ids) - self._seen)
        self._room[len(self._seen) : len(self._seen) + len(new)] = torch.tensor(new, dtype=torch.int64)
        self._seen.update(new)


def penalize(logits: torch.Tensor, repetitions: Sequence[Repetition | None]) -> None:
    """Apply each row's penalty to (B, vocab_size) `logits`, which are contiguous, in place.

    A positive logit is divided by the penalty, a negative one multiplied (https://arxiv.org/abs/1909.05858). The rows
    of one penalty, nearly always all rows of a model, are computed together; rows without one cost nothing.
    """
    flat, vocab_size = logits.view(-1), logits.shape[-1]
    by_penalty: dict[float, list[torch.Tensor]] = {}
    for row, repetition in enumerate(repetitions):
        if repetition is not None:
            indices = repetition.token_ids + row * vocab_size
            by_penalty.setdefault(repetition.penalty, []).append(indices)
    for penalty, parts in by_penalty.items():
        indices = torch.cat(parts)
        scores = flat[indices]
        # By a number, not by a tensor of numbers: only so does division round as transformers' does on every device.
        flat[indices] = torch.where(scores < 0, scores * penalty, scores / penalty)
