"""K and V of all slots, allocated once, dressed as a transformers Cache with a write position per row.

Which slots a forward pass reads and writes is set before it (`prefill_window`, `decode_window`); the layers hand back
views of the slots, so nothing is gathered or padded. Who sits in which slot is the scheduler's knowledge, not ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

LENGTH_STEP = 64  # positions; decode attends to the occupied length rounded up to this, so that shapes repeat


@dataclass(slots=True)
class Window:
    """The part of every layer that one forward pass uses. Shared by the layers, replaced before each pass."""

    slots: slice = field(default_factory=lambda: slice(0, 0))
    length: int = 0  # positions from 0 that are attended to, L
    start: int = 0  # prefill: where the chunk is written
    positions: torch.Tensor | None = None  # decode: (B,) where each row writes its one token
    rows: torch.Tensor | None = None  # decode: (B,) 0 to B-1


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    def __init__(self, keys: torch.Tensor, values: torch.Tensor, window: Window) -> None:
        super().__init__()
        self.keys: torch.Tensor = keys  # (num_slots, kv_heads, context, head_dim)
        self.values: torch.Tensor = values
        self.window = window
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("slots are allocated when the cache is made")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, kv_heads, S, head_dim) where the window says; return views (B, kv_heads, L, head_dim)."""
        window = self.window
        keys, values = self.keys[window.slots], self.values[window.slots]
        assert key_states.shape[0] == keys.shape[0], (key_states.shape, window)
        if window.positions is None:
            end = window.start + key_states.shape[2]
            keys[:, :, window.start : end] = key_states
            values[:, :, window.start : end] = value_states
        else:
            keys[window.rows, :, window.positions] = key_states[:, :, 0]
            values[window.rows, :, window.positions] = value_states[:, :, 0]
        return keys[:, :, : window.length], values[:, :, : window.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.length, 0

    def get_seq_length(self) -> int:
        return self.window.start

    def get_max_length(self) -> int:
        return int(self.keys.shape[2])


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped
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
    ) -> None:
        self.window = Window()
        self.context_tokens = context_tokens
        shape = (num_slots, num_kv_heads, context_tokens, head_dim)
        # Zeros, and zeros again after use: a masked position still enters attention as 0 * V, and 0 * nan is nan, so
        # what one request leaves behind in a slot could otherwise break the next one.
        layers: list[SlotLayer] = []
        for _ in range(num_layers):
            keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            layers.append(SlotLayer(keys, values, self.window))
        self.slot_layers = layers
        super().__init__(layers=list(layers))

    @property
    def num_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.slot_layers)

    def prefill_window(self, slot: int, start: int, length: int, num_mutual: int = 0) -> torch.Tensor:
        """Point the next pass at positions `start` to `start + length` of one slot; its mask (1, 1, S, L).

        Causal, except that the first `num_mutual` positions of the slot see each other; they come in one pass.
        """
        assert num_mutual <= start or (start == 0 and num_mutual <= length), (start, length, num_mutual)
        window = self.window
        window.slots, window.start, window.length = slice(slot, slot + 1), start, start + length
        window.positions = window.rows = None
        device = self.slot_layers[0].keys.device
        # The last position that each one sees: itself, or the end of the mutual ones.
        horizons = torch.arange(start, start + length, device=device).clamp(min=num_mutual - 1)
        return (torch.arange(window.length, device=device)[None, :] <= horizons[:, None])[None, None]

    def decode_window(self, positions: torch.Tensor, longest: int) -> torch.Tensor:
        """Point the next pass at one new token in each of the slots 0 to B-1; its mask (B, 1, 1, L).

        `positions` (B,) on the device says where each row writes; `longest` is its largest, known without asking
        the device.
        """
        window, batch = self.window, positions.shape[0]
        window.slots, window.start = slice(0, batch), longest
        window.length = min(-(-(longest + 1) // LENGTH_STEP) * LENGTH_STEP, self.context_tokens)
        window.positions, window.rows = positions, torch.arange(batch, device=positions.device)
        return (torch.arange(window.length, device=positions.device)[None, :] <= positions[:, None])[:, None, None]

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self.slot_layers:
            for tensor in (layer.keys, layer.values):
                tensor[target, :, :length] = tensor[source, :, :length]
        self.clear(source, length)

    def clear(self, slot: int, length: int) -> None:
        """Forget the first `length` positions of a slot."""
        for layer in self.slot_layers:
            layer.keys[slot, :, :length] = 0
            layer.values[slot, :, :length] = 0

    def is_clear(self, slot: int) -> bool:
        """Whether nothing is left in the slot; reads all of it."""
        tensors = (tensor[slot] for layer in self.slot_layers for tensor in (layer.keys, layer.values))
        return not any(bool(tensor.any()) for tensor in tensors)
