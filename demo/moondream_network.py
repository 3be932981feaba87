"""Holds Moondream's three parts as plain modules under the checkpoint's tensor names, for training on packed rows."""

from __future__ import annotations

import shutil
from typing import Any

import torch
import torch.nn.functional as F
from moondream_model import HIGHEST_COORD_WAVE, HIGHEST_SIZE_WAVE, waves
from torch import nn

ROTARY = 32  # of each head's 64 dimensions
READING_LAYER, POINTING_LAYER = 2, 3  # the training's extra heads read the states after so many layers


class Mlp(nn.Module):
    """Linear, tanh-approximated GELU, linear."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., width) to (..., out)."""
        result: torch.Tensor = self.fc2(F.gelu(self.fc1(states), approximate="tanh"))
        return result


class Attention(nn.Module):
    """Weights of fused attention; the owner says how it is done."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def heads(self, states: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values, each (B, heads, L, head width)."""
        batch, length, _ = states.shape
        return tuple(part.view(batch, length, count, -1).transpose(1, 2) for part in self.qkv(states).chunk(3, dim=-1))

    def join(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, heads, L, head width) to (B, L, D)."""
        result: torch.Tensor = self.proj(heads.transpose(1, 2).flatten(2))
        return result


class TextBlock(nn.Module):
    """Attention and MLP side by side behind one norm."""

    def __init__(self, width: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.ln, self.attn, self.mlp = nn.LayerNorm(width), Attention(width), Mlp(width, inner, width)
        self.num_heads = num_heads

    def forward(self, states: torch.Tensor, mask: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to the same; mask (B, 1, L, L), angles (B, L, ROTARY // 2)."""
        normed = self.ln(states)
        query, key, value = self.attn.heads(normed, self.num_heads)
        mixed = F.scaled_dot_product_attention(rotated(query, angles), rotated(key, angles), value, attn_mask=mask)
        return states + self.attn.join(mixed) + self.mlp(normed)


def rotated(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn the first ROTARY dimensions of each head by its position's angles."""
    half = ROTARY // 2
    real, imaginary, rest = heads[..., :half].float(), heads[..., half:ROTARY].float(), heads[..., ROTARY:]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    turned = torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return torch.cat([turned.to(heads.dtype), rest], dim=-1)


class Text(nn.Module):
    """The language model."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, vocabulary = config["dim"], config["vocab_size"]
        self.wte = nn.Parameter(torch.randn(vocabulary, width) * 0.1)
        blocks = (TextBlock(width, config["ff_dim"], config["n_heads"]) for _ in range(config["n_layers"]))
        self.blocks = nn.ModuleList(blocks)
        self.post_ln, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States (B, L, D) after all layers, before the last norm; after READING_LAYER; after POINTING_LAYER."""
        angles = positions[..., None] * 10000.0 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
        seen = [states := block(states, mask, angles) for block in self.blocks]
        return states, seen[READING_LAYER - 1], seen[POINTING_LAYER - 1]


class Region(nn.Module):
    """Encodes and decodes coordinates and sizes; the waves are not learned."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner = config["dim"], config["inner_dim"]
        coord_waves, size_waves = config["coord_feat_dim"] // 2, config["size_feat_dim"] // 4
        self.coord_encoder = nn.Linear(config["coord_feat_dim"], width)
        self.coord_decoder = Mlp(width, inner, config["coord_out_dim"])
        self.size_encoder = nn.Linear(config["size_feat_dim"], width)
        self.size_decoder = Mlp(width, inner, config["size_out_dim"])
        self.coord_features = nn.Parameter(waves(HIGHEST_COORD_WAVE, coord_waves)[None], requires_grad=False)
        size = torch.block_diag(*[waves(HIGHEST_SIZE_WAVE, size_waves)[None]] * 2)
        self.size_features = nn.Parameter(size, requires_grad=False)  # (2, waves): width's, then height's

    def encode_coords(self, values: torch.Tensor) -> torch.Tensor:
        """(N,) fractions to (N, D) embeddings."""
        result: torch.Tensor = self.coord_encoder(_fourier(values[:, None], self.coord_features))
        return result

    def encode_sizes(self, values: torch.Tensor) -> torch.Tensor:
        """(N, 2) widths and heights to (N, D) embeddings."""
        result: torch.Tensor = self.size_encoder(_fourier(values, self.size_features))
        return result


def _fourier(values: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    angles = 2 * torch.pi * values @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class VisionBlock(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, inner: int, num_heads: int) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width), Attention(width)
        self.ln2, self.mlp = nn.LayerNorm(width), Mlp(width, inner, width)
        self.num_heads = num_heads

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(B, patches, D) to the same."""
        states = states + self.attn.join(
            F.scaled_dot_product_attention(*self.attn.heads(self.ln1(states), self.num_heads))
        )
        return states + self.mlp(self.ln2(states))


class Vision(nn.Module):
    """The tower, which sees one crop at a time, and the projection of a picture's two views."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.patch = config["enc_dim"], config["enc_patch_size"]
        patches = (config["crop_size"] // self.patch) ** 2
        self.pos_emb = nn.Parameter(torch.zeros(1, patches, width))
        self.patch_emb = nn.Linear(config["in_channels"] * self.patch**2, width)
        blocks = (VisionBlock(width, config["enc_ff_dim"], config["enc_n_heads"]) for _ in range(config["enc_n_layers"]))
        self.blocks, self.post_ln = nn.ModuleList(blocks), nn.LayerNorm(width)
        self.proj_mlp = Mlp(2 * width, config["proj_inner_dim"], config["proj_out_dim"])

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalised pixels to (B, patches, D)."""
        patches = F.unfold(crops, self.patch, stride=self.patch).transpose(1, 2)  # (B, patches, channel * y * x)
        states = self.patch_emb(patches) + self.pos_emb
        for block in self.blocks:
            states = block(states)
        result: torch.Tensor = self.post_ln(states)
        return result


class Moondream(nn.Module):
    """Tower and projection, language model, and the heads for places and sizes."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.vision, self.text, self.region = (
            Vision(config["vision"]), Text(config["text"]), Region(config["region"]),
        )  # fmt: skip


def compiled_text(text: Text) -> Any:
    """The language model's layers, compiled where a compiler is installed."""
    return torch.compile(text, dynamic=False) if shutil.which("g++") else text
