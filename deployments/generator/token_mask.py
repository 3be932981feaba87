"""Rules out tokens that a request's grammar forbids. Knows no grammar: who has one fills the masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from deployments.types import GenerateRequest

if TYPE_CHECKING:
    import torch

WORD_BITS = 32


class TokenMask(Protocol):
    """Which tokens may come next in one answer. One request's state, used by the engine's thread alone.

    What it raises ends its own request and no other.
    """

    def fill(self, words: torch.Tensor) -> None:
        """Set bit `token_id % 32` of word `token_id // 32` for each token that may come next.

        `words` is int32, contiguous, on the CPU and all zeros: (1, ceil(vocab_size / 32)), a batch of one as
        llguidance's and xgrammar's `fill_next_token_bitmask(matcher, words, 0)` take it. The vocabulary is the model's,
        which may be longer than the tokenizer's. Tokens that stop the answer are ruled out like any other.
        """
        ...

    def revise(self, token_id: int) -> int:
        """The token that is taken where `token_id`, which `fill` allowed, was drawn: itself, or one after which the
        answer can still end in time.
        """
        ...

    def accept(self, token_id: int) -> None:
        """`token_id` was chosen, which may be one that stops the answer. Those that were chosen before the first `fill`
        come one after the other, without `revise`.
        """
        ...


# For a request, and for as many tokens as its answer may have in all. None: all tokens may come. May block, raises
# InvalidRequest.
OpenMask = Callable[[GenerateRequest, int], TokenMask | None]


def read_mask(mask: TokenMask, vocab_size: int) -> torch.Tensor | None:
    """(1, num_words) int32 on the CPU, no bit set beyond the vocabulary; None if no token may come."""
    import torch

    words = torch.zeros(1, -(-vocab_size // WORD_BITS), dtype=torch.int32)
    mask.fill(words)
    if num_tail_bits := vocab_size % WORD_BITS:
        words[0, -1] &= 2**num_tail_bits - 1
    return words if bool(words.any()) else None


def restrict(logits: torch.Tensor, words: Mapping[int, torch.Tensor]) -> None:
    """Rule out, in place, what the masks of some rows of (B, vocab_size) logits do not allow."""
    import torch

    if not words:
        return
    packed = torch.cat(list(words.values()))
    if logits.device.type == "cuda":
        packed = packed.pin_memory().to(logits.device, non_blocking=True)
    bits = torch.arange(WORD_BITS, dtype=torch.int32, device=logits.device)
    is_ruled_out = ((packed[..., None] >> bits) & 1 == 0).flatten(1)[:, : logits.shape[-1]]
    # One by one: writing by a list of indices would wait for the device.
    for row, ruled_out in zip(words, is_ruled_out, strict=True):
        logits[row].masked_fill_(ruled_out, -torch.inf)
