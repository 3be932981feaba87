"""Builds the demo Moondream's first weights, and runs the network that serves it over packed rows, as training does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from moondream_model import tower_weights
from torch import nn

from deployments.models.moondream_config import RegionSizes, TextSizes, VisionSizes
from deployments.models.moondream_modules import Region, Text, Vision, rotary_waves

READING_LAYER, POINTING_LAYER = 2, 3  # the training's extra heads read the states after so many layers
LOWEST_WAVE, HIGHEST_COORD_WAVE, HIGHEST_SIZE_WAVE = 0.25, 16.0, 8.0  # per side of the picture


class Moondream(nn.Module):
    """The three networks under the checkpoint's tensor names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        sizes = {part: {k: v for k, v in config[part].items() if k != "group_size"} for part in ("text", "region")}
        self.vision = Vision(VisionSizes(**config["vision"]))
        self.text, self.region = Text(TextSizes(**sizes["text"])), Region(RegionSizes(**sizes["region"]))


def build_model(config: dict[str, Any], smolvlm: Path, seed: int) -> Moondream:
    """Make the model: the demo SmolVLM's trained tower, frozen, and else fresh weights that depend on the seed."""
    torch.manual_seed(seed)
    model = Moondream(config)
    model.vision.requires_grad_(requires_grad=False)
    model.vision.load_state_dict({**model.vision.state_dict(), **tower_weights(smolvlm)})
    model.vision.proj_mlp.requires_grad_()
    region = model.region
    with torch.no_grad():
        model.text.wte.normal_(std=0.1)
        region.coord_features.copy_(_waves(HIGHEST_COORD_WAVE, region.coord_features.shape[1])[None])
        half = region.size_features.shape[1] // 2  # the width's waves, then the height's
        region.size_features[0, :half] = region.size_features[1, half:] = _waves(HIGHEST_SIZE_WAVE, half)
    region.coord_features.requires_grad = region.size_features.requires_grad = False
    return model


def _waves(highest: float, count: int) -> torch.Tensor:
    """Wave numbers that rise by equal ratios; (count,)."""
    return torch.logspace(0, 1, count, base=highest / LOWEST_WAVE) * LOWEST_WAVE


def text_states(
    text: Text, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States (B, L, D) after all layers, before the last norm; after READING_LAYER; after POINTING_LAYER."""
    waves, states, seen = rotary_waves(positions), embeds, list[torch.Tensor]()
    for block in text.blocks:
        states = block(states, waves, mask, None)
        seen.append(states)
    return states, seen[READING_LAYER - 1], seen[POINTING_LAYER - 1]


compiled_states = torch.compile(text_states, dynamic=False) if shutil.which("g++") else text_states
