"""What one step of a runner made, and what a runner is to the thread that drives it."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from deployments.generator.sequence import Sequence

if TYPE_CHECKING:
    import torch

    from deployments.generator.prefix_cache import PrefixCache


@dataclass(slots=True)
class Step:
    tokens: list[tuple[Sequence, int]] = field(default_factory=list)  # each sequence at most once, here or in failures
    hidden: dict[Sequence, torch.Tensor] = field(default_factory=dict)  # (D,) behind the token, of those with rules
    failures: list[tuple[Sequence, Exception]] = field(default_factory=list)
    num_prefill_tokens: int = 0
    num_reused_tokens: int = 0  # laid down from what was remembered
    num_decodes: int = 0


class Runner(Protocol):
    """Runs the model for sequences. One thread uses it, under inference mode."""

    num_slots: int
    num_cache_bytes: int

    @property
    def prefix(self) -> PrefixCache | None:
        """None: it remembers nothing."""
        ...

    def step(self, sequences: SequenceOf[Sequence]) -> Step:
        """Compute the next tokens of some of `sequences`, which are in order of arrival.

        What goes wrong for one sequence, or for a batch of them, is in `failures`; the others are not harmed.
        """
        ...

    def release(self, sequence: Sequence) -> None:
        """Forget everything about a sequence that is finished, failed or dropped."""
        ...

    def problems(self) -> list[str]:
        """What is not as it must be while no sequence is there."""
        ...
