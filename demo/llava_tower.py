"""The CLIP-shaped tower that both demo LLaVAs share: its shape, its first weights, what it sees in many pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from distilling import Grid
from pool import Pool, normalized
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

SIDE, PATCH = 64, 8
GRID: Grid = (SIDE // PATCH, SIDE // PATCH)
IMAGE_TOKENS = GRID[0] * GRID[1]
WIDTH, LAYERS = 128, 5
FEATURE_LAYER = -2  # so the last layer is never used, as in every LLaVA


def vision_config() -> dict[str, Any]:
    """The tower's shape as it stands in config.json."""
    return {
        "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
        "num_attention_heads": 4, "num_hidden_layers": LAYERS, "image_size": SIDE, "patch_size": PATCH,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": WIDTH, "vocab_size": 0,
    }  # fmt: skip


def build_tower(seed: int) -> CLIPVisionModel:
    """Make the tower with fresh weights."""
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig.from_dict(vision_config()))


class ClipPupil:
    """The tower as `distil` trains it: up to the layer that LLaVA reads, without the class token."""

    width = WIDTH

    def __init__(self, tower: Any) -> None:
        self.tower = tower

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(B, 3, SIDE, SIDE) to (B, IMAGE_TOKENS, WIDTH)."""
        return see(self.tower, values)

    def teachable(self) -> nn.Module:
        """The tower without what no feature depends on."""
        return nn.ModuleList([self.tower.embeddings, self.tower.pre_layrnorm, _used_layers(self.tower)])

    def grids(self) -> Iterator[tuple[Grid, tuple[int, int]]]:
        """Always the one grid that CLIP knows."""
        return itertools.repeat((GRID, (SIDE, SIDE)))


def _used_layers(tower: Any) -> nn.ModuleList:
    return nn.ModuleList(tower.encoder.layers[: FEATURE_LAYER + 1])


def see(tower: Any, values: torch.Tensor) -> torch.Tensor:
    """Features as LLaVA takes them: hidden_states[FEATURE_LAYER] of the patches; (B, IMAGE_TOKENS, WIDTH)."""
    states = tower.pre_layrnorm(tower.embeddings(values))
    for layer in _used_layers(tower):
        states = layer(states, attention_mask=None)
    patches: torch.Tensor = states[:, 1:]
    return patches


@torch.no_grad()
def begin_from_smolvlm(tower: Any, weights: dict[str, torch.Tensor], values: torch.Tensor) -> None:
    """Copy SmolVLM's tower; from `values`, some pictures, the norm before the blocks is set to change little."""
    vision = {n.removeprefix("model.vision_model."): w.float() for n, w in weights.items() if "vision_model" in n}
    places = vision["embeddings.position_embedding.weight"] + vision["embeddings.patch_embedding.bias"]
    embeddings = tower.embeddings
    embeddings.patch_embedding.weight.copy_(vision["embeddings.patch_embedding.weight"])
    embeddings.position_embedding.weight.copy_(torch.cat([torch.zeros(1, WIDTH), places]))
    tower.pre_layrnorm.weight.fill_(embeddings(values)[:, 1:].std(-1).mean().item())
    for number, layer in enumerate(_used_layers(tower)):
        for name, parameter in layer.named_parameters():
            parameter.copy_(vision[f"encoder.layers.{number}.{name}"])


@torch.no_grad()
def encode(tower: Any, pool: Pool, count: int) -> torch.Tensor:
    """Features of the pool's first pictures; (count, IMAGE_TOKENS, WIDTH)."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([see(tower, normalized(chunk)) for chunk in torch.split(pool.pixels[:count], 256)])
