"""Qwen2-VL's tower over batches of equally large pictures: its first weights, what it sees in many pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from distilling import Grid, resized
from pool import Pool, normalized
from torch import nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

PATCH, MERGE, FRAMES = 8, 2, 2
CELL = PATCH * MERGE  # pixels a side of one image token
SQUARE: Grid = (4, 4)
# What a picture of about 64 x 64 pixels becomes when it is up to 16:9 wide or tall; the last two if it is smaller.
GRIDS: tuple[Grid, ...] = (SQUARE, (3, 4), (4, 3), (3, 5), (5, 3), (4, 5), (5, 4))


class QwenPupil:
    """The tower as `distil` trains it: mostly squares, every fourth step another grid."""

    def __init__(self, visual: Any, seed: int) -> None:
        self.visual, self.rng = visual, np.random.default_rng([seed, 7])
        self.width: int = visual.config.hidden_size

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(B, 3, height, width) to (B, tokens, D)."""
        return see(self.visual, values)

    def teachable(self) -> nn.Module:
        """All of the tower."""
        visual: nn.Module = self.visual
        return visual

    def grids(self) -> Iterator[tuple[Grid, tuple[int, int]]]:
        """Every fourth step another grid than the square one."""
        while True:
            for _ in range(3):
                yield SQUARE, pixels_of(SQUARE)
            other = GRIDS[int(self.rng.integers(1, len(GRIDS)))]
            yield other, pixels_of(other)


def pixels_of(grid: Grid) -> tuple[int, int]:
    """Height and width of a picture with this grid of tokens."""
    return grid[0] * CELL, grid[1] * CELL


def see(visual: Any, values: torch.Tensor) -> torch.Tensor:
    """Run the tower on (B, 3, height, width) values, all at once; its own forward takes one picture after another."""
    patches = to_patches(values)  # (B, P, patch_dim)
    grid = torch.tensor([[1, values.shape[-2] // PATCH, values.shape[-1] // PATCH]])
    states = visual.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    angles = visual.rotary_pos_emb(states, get_vision_position_ids(grid, MERGE))
    for block in visual.blocks:
        states = states + _attend(block.attn, block.norm1(states), angles)
        states = states + block.mlp(block.norm2(states))
    merged: torch.Tensor = visual.merger(states).unflatten(0, (len(values), -1))
    return merged


def to_patches(values: torch.Tensor) -> torch.Tensor:
    """Cut pictures as Qwen2VLImageProcessor does, four neighbours after each other; (B, P, 3 * FRAMES * PATCH**2)."""
    batch, channels, height, width = values.shape
    cut = values.reshape(batch, channels, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH)
    ordered = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (B, gh, gw, mh, mw, C, ph, pw)
    twice = ordered.unsqueeze(6).expand(*ordered.shape[:6], FRAMES, PATCH, PATCH)
    return twice.reshape(batch, -1, channels * FRAMES * PATCH * PATCH)


def _attend(attention: Any, states: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    shape = (*states.shape[:2], 3, attention.num_heads, attention.head_dim)
    query, key, value = attention.qkv(states).reshape(shape).unbind(2)  # (B, P, heads, head_dim) each
    query, key = apply_rotary_pos_emb_vision(query, key, *angles)
    seen = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (query, key, value)))
    out: torch.Tensor = attention.proj(seen.transpose(1, 2).flatten(2))
    return out


@torch.no_grad()
def begin_from_smolvlm(visual: Any, weights: dict[str, torch.Tensor]) -> None:
    """Copy SmolVLM's patch and block weights; positions, which rotate here, and the merger begin anew."""
    patch = weights["model.vision_model.embeddings.patch_embedding.weight"].float()  # (D, 3, P, P)
    visual.patch_embed.proj.weight.copy_(patch[:, :, None].expand(-1, -1, FRAMES, -1, -1) / FRAMES)
    for number, block in enumerate(visual.blocks):
        layer = f"model.vision_model.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            parts = [weights[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            getattr(block.attn.qkv, kind).copy_(torch.cat(parts))
            for ours, theirs in (("attn.proj", "self_attn.out_proj"), ("norm1", "layer_norm1"),
                                 ("norm2", "layer_norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):  # fmt: skip
                getattr(block.get_submodule(ours), kind).copy_(weights[f"{layer}.{theirs}.{kind}"])


@torch.no_grad()
def encode(visual: Any, pool: Pool, chosen: range, grid: Grid) -> torch.Tensor:
    """Features of some of the pool's pictures, stretched to a grid; (N, tokens, D)."""
    chunks = torch.split(pool.pixels[chosen.start : chosen.stop], 256)
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([see(visual, normalized(resized(chunk, pixels_of(grid)))) for chunk in chunks])
