"""Moondream's three networks (vision, text, region) as plain modules whose parameters have the checkpoint's names.

Nothing here knows of prompts, requests or files. All of it differentiates; without a cache the text network runs over
whole sequences, as training does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache

from deployments.models.family import Attend
from deployments.models.moondream_config import HEAD_DIM, RegionSizes, TextSizes, VisionSizes
from deployments.models.moondream_patches import cut_patches, stitch

ROTARY_DIM = HEAD_DIM // 2  # of each head; the other half carries no position
ROTARY_BASE = 10_000.0


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, out)

    def forward(self, states: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(states), approximate="tanh"))
        return out


# --------------------------------------------------------------------------------- vision


class VisionAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, P, D) to (B, P, D); every patch sees every other of its crop."""
        q, k, v = (
            torch.unflatten(part, -1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(states).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, P, D / heads)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class VisionBlock(nn.Module):
    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(sizes.enc_dim)
        self.attn = VisionAttention(sizes.enc_dim, sizes.enc_n_heads)
        self.ln2 = nn.LayerNorm(sizes.enc_dim)
        self.mlp = Mlp(sizes.enc_dim, sizes.enc_ff_dim, sizes.enc_dim)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(self.ln1(states))
        out: Tensor = states + self.mlp(self.ln2(states))
        return out


class Vision(nn.Module):
    """The tower, and the projection of what it saw into the language part's embeddings."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch_emb = nn.Linear(sizes.enc_patch_size**2 * sizes.in_channels, sizes.enc_dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, sizes.image_tokens, sizes.enc_dim))
        self.blocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes.enc_n_layers))
        self.post_ln = nn.LayerNorm(sizes.enc_dim)
        self.proj_mlp = Mlp(2 * sizes.enc_dim, sizes.proj_inner_dim, sizes.proj_out_dim)

    def forward(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) normalised crops to (B, P, D of the tower), patches by row."""
        states = self.embed(crops)
        for block in self.blocks:
            states = block(states)
        out: Tensor = self.post_ln(states)
        return out

    def embed(self, crops: Tensor) -> Tensor:
        """(B, 3, S, S) normalised crops to (B, P, D of the tower) before the first block."""
        embedded: Tensor = self.patch_emb(cut_patches(crops, self.sizes.enc_patch_size)) + self.pos_emb
        return embedded

    def project(self, states: Tensor, tiling: tuple[int, int]) -> Tensor:
        """(1 + rows * columns, P, D of the tower) of one picture's crops to its features (P, D).

        The crop of the whole picture comes first, then those of `tiling` by row. Each feature row is made of a patch of
        the whole and of what the other crops show at that place.
        """
        assert len(states) == 1 + tiling[0] * tiling[1], (states.shape, tiling)
        grid = self.sizes.grid
        stitched = stitch(torch.unflatten(states[1:], 1, (grid, grid)), tiling, self.sizes.overlap_margin)
        pooled = F.adaptive_avg_pool2d(stitched.permute(2, 0, 1), (grid, grid))  # (D, grid, grid)
        local = pooled.permute(1, 2, 0).flatten(0, 1)  # (P, D)
        out: Tensor = self.proj_mlp(torch.cat([states[0], local], dim=-1))
        return out


# --------------------------------------------------------------------------------- text


class TextAttention(nn.Module):
    def __init__(self, sizes: TextSizes, layer: int) -> None:
        super().__init__()
        self.layer = layer  # index into the cache
        self.num_heads, self.num_kv_heads = sizes.n_heads, sizes.n_kv_heads
        self.qkv = nn.Linear(sizes.dim, (sizes.n_heads + 2 * sizes.n_kv_heads) * HEAD_DIM)
        self.proj = nn.Linear(sizes.dim, sizes.dim)

    def forward(self, states: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor, cache: Cache | None) -> Tensor:
        heads = torch.unflatten(self.qkv(states), -1, (-1, HEAD_DIM)).transpose(1, 2)  # (B, all heads, S, HEAD_DIM)
        q, k, v = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = rotate(q, *waves), rotate(k, *waves)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.num_heads != self.num_kv_heads)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out

    def run(self, states: Tensor, waves: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """The same for (N, D) tokens of many sequences, whose keys and values are the caller's."""
        heads = torch.unflatten(self.qkv(states), -1, (-1, HEAD_DIM))  # (N, all heads, HEAD_DIM)
        q, k, v = torch.split(heads, [self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        out: Tensor = self.proj(attend(self.layer, rotate(q, *waves), rotate(k, *waves), v))
        return out


class TextBlock(nn.Module):
    """Attention and MLP side by side behind one norm."""

    def __init__(self, sizes: TextSizes, layer: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(sizes.dim)
        self.attn = TextAttention(sizes, layer)
        self.mlp = Mlp(sizes.dim, sizes.ff_dim, sizes.dim)

    def forward(self, states: Tensor, waves: tuple[Tensor, Tensor], mask: Tensor, cache: Cache | None) -> Tensor:
        normed = self.ln(states)
        out: Tensor = states + self.attn(normed, waves, mask, cache) + self.mlp(normed)
        return out

    def run(self, states: Tensor, waves: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        normed = self.ln(states)
        out: Tensor = states + self.attn.run(normed, waves, attend) + self.mlp(normed)
        return out


class Text(nn.Module):
    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.wte = nn.Parameter(torch.zeros(sizes.vocab_size, sizes.dim))
        self.blocks = nn.ModuleList(TextBlock(sizes, layer) for layer in range(sizes.n_layers))
        self.post_ln = nn.LayerNorm(sizes.dim)
        self.lm_head = nn.Linear(sizes.dim, sizes.vocab_size)

    def embed(self, token_ids: Tensor) -> Tensor:
        """(B, S) to (B, S, D)."""
        return F.embedding(token_ids, self.wte)

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, S, D) embeddings at (B, S) positions to hidden states (B, S, D), before the last norm.

        `mask` is bool (B or 1, 1, S, L), True where attended; without a cache L is S.
        """
        waves = rotary_waves(positions)
        states = embeddings
        for block in self.blocks:
            states = block(states, waves, mask, cache)
        return states

    def run(self, embeddings: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """(N, D) embeddings at (N,) positions to hidden states (N, D), before the last norm."""
        cosines, sines = (wave[0, 0, :, None] for wave in rotary_waves(positions[None]))  # each (N, 1, ROTARY_DIM / 2)
        states = embeddings
        for block in cast(Iterable[TextBlock], self.blocks):
            states = block.run(states, (cosines, sines), attend)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., vocab_size)."""
        out: Tensor = self.lm_head(self.post_ln(hidden))
        return out


def rotary_waves(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of (B, S) positions, each (B, 1, S, ROTARY_DIM / 2), always in float32.

    Computed at each pass: as a buffer they would be rounded whenever the network is cast to bfloat16.
    """
    exponents = torch.arange(0, ROTARY_DIM, 2, dtype=torch.float32, device=positions.device) / ROTARY_DIM
    angles = positions[:, None, :, None].float() * (1.0 / ROTARY_BASE**exponents)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(B, heads, S, HEAD_DIM) with its first ROTARY_DIM turned: pairs are (i, i + ROTARY_DIM / 2).

    Moondream's published code writes the pairs side by side. That orders queries and keys alike, so that attention is
    the same.
    """
    first, second, rest = torch.split(heads, [ROTARY_DIM // 2, ROTARY_DIM // 2, HEAD_DIM - ROTARY_DIM], dim=-1)
    turned = [first * cosines - second * sines, first * sines + second * cosines]
    return torch.cat([*(half.to(heads.dtype) for half in turned), rest], dim=-1)


# --------------------------------------------------------------------------------- region


class Region(nn.Module):
    """Coordinates and sizes into embeddings, and out of hidden states (those before the last norm)."""

    def __init__(self, sizes: RegionSizes) -> None:
        super().__init__()
        self.coord_features = nn.Parameter(torch.zeros(1, sizes.coord_feat_dim // 2))
        self.coord_encoder = nn.Linear(sizes.coord_feat_dim, sizes.dim)
        self.coord_decoder = Mlp(sizes.dim, sizes.inner_dim, sizes.coord_out_dim)
        self.size_features = nn.Parameter(torch.zeros(2, sizes.size_feat_dim // 2))
        self.size_encoder = nn.Linear(sizes.size_feat_dim, sizes.dim)
        self.size_decoder = Mlp(sizes.dim, sizes.inner_dim, sizes.size_out_dim)

    def encode_coordinate(self, coordinates: Tensor) -> Tensor:
        """(..., 1) shares of the picture's width or height to (..., D)."""
        out: Tensor = self.coord_encoder(fourier_features(coordinates, self.coord_features))
        return out

    def encode_size(self, sizes: Tensor) -> Tensor:
        """(..., 2) widths and heights as shares of the picture's to (..., D)."""
        out: Tensor = self.size_encoder(fourier_features(sizes, self.size_features))
        return out

    def coordinate_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., bins): bin k stands for the coordinate k / bins."""
        out: Tensor = self.coord_decoder(hidden)
        return out

    def size_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., 2, bins) of width and height: the bins from first to last stand for 2**-10 to 1."""
        out: Tensor = self.size_decoder(hidden)
        return torch.unflatten(out, -1, (2, -1))


def fourier_features(values: Tensor, waves: Tensor) -> Tensor:
    """(..., n) values by (n, F) wave numbers to (..., 2 F)."""
    angles = 2 * math.pi * values @ waves
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
