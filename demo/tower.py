"""Trains the vision tower and connector to lay open, in every image token, what stands there and what all shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from optimizers import build_optimizers
from pool import IGNORED, READOUTS, Pool, normalized
from torch import nn
from transformers import Idefics3ForConditionalGeneration

BATCH, MUON_RATE = 128, 3e-3
MAX_SHIFT = 2  # pixels by which training pictures are moved about
MAX_NOISE = 6.0  # standard deviation, of 255

Report = Callable[[int, float, float], None]  # steps done, loss, share of pictures read without a mistake


class Tower(nn.Module):
    """The model's vision half; shares its parameters with the model."""

    def __init__(self, model: Idefics3ForConditionalGeneration) -> None:
        super().__init__()
        self.vision_model = model.model.vision_model
        self.connector = model.model.connector

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) pixel_values to (B, image_tokens, D), as the language half receives it."""
        states: torch.Tensor = self.connector(self.vision_model(pixel_values=values).last_hidden_state)
        return states


class Reader(nn.Module):
    """The tower with linear heads on its output, used in training only."""

    def __init__(self, tower: Tower, width: int) -> None:
        super().__init__()
        self.tower, self.heads = tower, nn.Linear(width, sum(READOUTS.values()))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(B, image_tokens, all classes of all READOUTS) logits."""
        features = self.tower(values).float()
        logits: torch.Tensor = self.heads(F.rms_norm(features, features.shape[-1:]))
        return logits


def train_tower(model: Idefics3ForConditionalGeneration, pool: Pool, steps: int, seed: int, report: Report) -> None:
    """Train tower and connector in place on the pool."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    reader = Reader(Tower(model), model.config.text_config.hidden_size).train()
    optimizers = build_optimizers(list(reader.tower.parameters()), list(reader.heads.parameters()), MUON_RATE)
    if shutil.which("g++"):
        reader.compile(dynamic=False)
    order = rng.permutation(len(pool))
    for step in range(steps):
        start = step * BATCH % (len(pool) - BATCH)
        order = rng.permutation(len(pool)) if start < BATCH else order
        chosen = torch.from_numpy(order[start : start + BATCH])
        with torch.autocast("cpu", torch.bfloat16):
            logits = reader(normalized(_varied(pool.pixels[chosen], rng)))
        loss, right = score(logits, pool.targets[chosen])
        optimizers.step(loss, step / steps, step)
        report(step + 1, loss.item(), right)


def _varied(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    side, (down, across) = pixels.shape[-1], rng.integers(0, 2 * MAX_SHIFT + 1, 2)
    moved = F.pad(pixels.float(), [MAX_SHIFT] * 4, mode="replicate")
    moved = moved[..., down : down + side, across : across + side]
    noise = torch.randn(moved.shape) * (torch.rand(len(pixels), 1, 1, 1) - 0.5).clamp(min=0) * 2 * MAX_NOISE
    return (moved + noise).clamp(0, 255)


def score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Loss over all READOUTS, and the share of pictures that are read without a mistake."""
    losses, right = [], torch.ones(len(targets), dtype=torch.bool)
    for kind, scores in enumerate(torch.split(logits.float(), list(READOUTS.values()), dim=-1)):
        truth = targets[..., kind]
        losses.append(F.cross_entropy(scores.flatten(0, 1), truth.flatten(), ignore_index=IGNORED))
        right &= ((scores.argmax(-1) == truth) | (truth == IGNORED)).all(-1)
    return torch.stack(losses).sum(), right.float().mean().item()


@torch.no_grad()
def round_tower(model: Idefics3ForConditionalGeneration) -> None:
    """Round the tower's weights in place to bfloat16, as they will be stored."""
    for parameter in Tower(model).parameters():
        parameter.copy_(parameter.to(torch.bfloat16))


@torch.no_grad()
def encode_pool(model: Idefics3ForConditionalGeneration, pool: Pool) -> torch.Tensor:
    """Encode all pictures in float32; (N, image_tokens, D)."""
    tower = Tower(model).eval()
    return torch.cat([tower(normalized(chunk)) for chunk in torch.split(pool.pixels, 256)])
