"""K and V of all slots in one tensor, allocated once. Who sits in which slot is the scheduler's knowledge, not ours."""

from __future__ import annotations

import torch


class SlotCache:
    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_kv_heads: int,
        context_tokens: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        has_scratch: bool = False,
    ) -> None:
        """With `has_scratch` each slot has one position more, behind the context, that is written and never read."""
        self.context_tokens = context_tokens
        # Zeros, and zeros again after use: a masked position still enters attention as 0 * V, and 0 * nan is nan, so
        # what one request leaves behind in a slot could otherwise break the next one.
        shape = (num_layers, 2, num_slots, num_kv_heads, context_tokens + has_scratch, head_dim)  # 2: K, then V
        self.store = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = [
            (layer[0], layer[1]) for layer in self.store
        ]  # K and V, (num_slots, kv_heads, context, head_dim)

    @property
    def num_bytes(self) -> int:
        return self.store.nbytes

    def slot(self, slot: int) -> torch.Tensor:
        """(num_layers, 2, kv_heads, context_tokens, head_dim), a view."""
        return self.store[:, :, slot]

    def move(self, source: int, target: int, length: int) -> None:
        """The first `length` positions go to another slot, which is clear; `source` is clear then."""
        self.slot(target)[..., :length, :] = self.slot(source)[..., :length, :]
        self.clear(source, length)

    def clear(self, slot: int, length: int) -> None:
        """Forget the first `length` positions of a slot."""
        self.slot(slot)[..., :length, :] = 0

    def is_clear(self, slot: int) -> bool:
        """Whether nothing is left in the slot; reads all of it."""
        return not bool(self.slot(slot)[..., : self.context_tokens, :].any())
