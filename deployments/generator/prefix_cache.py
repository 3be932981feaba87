"""Remembers the K/V of finished beginnings of prompts in blocks beside the slots, and lays them into a slot again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from deployments.generator.kv_cache import SlotCache
from deployments.generator.prefix_tree import BLOCK_TOKENS, NO_MATCH, Content, Match, PrefixTree


class PrefixCache:
    """Any thread may ask and let go; the engine's thread alone fills and lays down.

    So a block that was added and is not filled yet may well be found: before anybody reads it, it is filled.
    """

    def __init__(self, slots: SlotCache, max_bytes: int) -> None:
        layers, two, _, kv_heads, _, head_dim = slots.store.shape
        shape = (layers, two, kv_heads, BLOCK_TOKENS, head_dim)
        block_bytes = shape[0] * shape[1] * shape[2] * shape[3] * shape[4] * slots.store.element_size()
        self._slots = slots
        self._lock = threading.Lock()  # guards the tree
        self._tree = PrefixTree(max_bytes // block_bytes)
        # Not zeroed: on a CPU the system then gives memory only as blocks are used.
        self._blocks = torch.empty((self._tree.num_blocks, *shape), dtype=slots.store.dtype, device=slots.store.device)
        self.version = 0  # counts up when something new is remembered

    @property
    def num_bytes(self) -> int:
        return self._blocks.nbytes

    def match(self, realm: str, contents: Sequence[Content], *, least: int) -> Match:
        """The longest remembered beginning, one token short of all at most: the last one's output is wanted. Give it
        back by `unpin`."""
        with self._lock:
            return self._tree.match(realm, contents, least, len(contents) - 1)

    def unpin(self, match: Match) -> None:
        with self._lock:
            self._tree.unpin(match)

    def restore(self, match: Match, slot: int) -> None:
        """Lay the beginning into a slot. Blocks are copied, so the slot is its sequence's alone."""
        if match is NO_MATCH:
            return
        target = self._slots.slot(slot)  # (layers, 2, kv_heads, context, head_dim)
        blocks = self._blocks[torch.tensor(match.blocks, device=target.device)]
        whole, rest = divmod(match.num_tokens, BLOCK_TOKENS)
        if whole:
            _by_block(target[..., : whole * BLOCK_TOKENS, :]).copy_(blocks[:whole])
        if rest:
            target[..., whole * BLOCK_TOKENS : match.num_tokens, :] = blocks[whole][..., :rest, :]

    def remember(self, realm: str, contents: Sequence[Content], slot: int, least: int = 0) -> None:
        """Keep the K/V of whole blocks of `contents`, which stand at the beginning of the slot; of `least` tokens even
        where a block is not whole, since fewer would be found by nobody."""
        with self._lock:
            filled = self._tree.add(realm, contents, least)
        if not filled:
            return
        source = self._slots.slot(slot)  # (layers, 2, kv_heads, context, head_dim)
        index, block = filled[-1]
        if rest := min(len(contents) - index * BLOCK_TOKENS, BLOCK_TOKENS) % BLOCK_TOKENS:
            self._blocks[block][..., :rest, :] = source[..., index * BLOCK_TOKENS : len(contents), :]
            filled = filled[:-1]
        if filled:
            indices, blocks = zip(*filled, strict=True)
            stretch = source[..., indices[0] * BLOCK_TOKENS : (indices[-1] + 1) * BLOCK_TOKENS, :]
            self._blocks.index_copy_(0, torch.tensor(blocks, device=source.device), _by_block(stretch))
        self.version += 1

    def statistics(self) -> dict[str, int]:
        with self._lock:
            tree = self._tree
            return {
                "blocks": tree.num_blocks,
                "used": tree.num_used,
                "pinned": tree.num_pinned,
                "evicted": tree.num_evicted,
                "block_tokens": BLOCK_TOKENS,
                "bytes": self.num_bytes,
            }

    def problems(self) -> list[str]:
        """What is not as it must be while nobody holds a match."""
        with self._lock:
            return self._tree.problems()


def _by_block(stretch: torch.Tensor) -> torch.Tensor:
    """(layers, 2, kv_heads, n * BLOCK_TOKENS, head_dim) as a view (n, layers, 2, kv_heads, BLOCK_TOKENS, head_dim)."""
    return torch.unflatten(stretch, -2, (-1, BLOCK_TOKENS)).movedim(-3, 0)
