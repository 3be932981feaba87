"""Trains the demo Moondream's projection, language model and region heads, asking more of what still goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from language import FORGETTING, exact_answers
from moondream_batch import Batch, Numbers, to_batch
from moondream_model import BINS
from moondream_network import Moondream, compiled_states
from moondream_packing import KINDS, NO_ANSWER, Packer
from moondream_pictures import Pictures
from optimizers import Optimizers, build_optimizers
from pool import IGNORED, READOUTS
from torch import nn

ROWS, MUON_RATE = 8, 3e-3
PICTURE_SHARE, PAIR_SHARE = 0.8, 0.6  # of the rows have a picture; of those, two things for certain
BLUR_BINS = 6.0  # standard deviation of what a place or size is taught to be
TOLERATED_BINS = 64  # that a place or size may be off and still count as right
PLACE_NOISE, SIZE_NOISE = 0.006, 0.04  # on what is fed back, for what comes next must bear it; size relative
BOX_ERROR = 0.05  # where the loss of boxes turns from square to straight
POINTED = list(READOUTS.values())[:3]  # classes of shape, color, place


class Probes(nn.Module):
    """Linear heads of the training only: what each patch shows, and what a word points at, with its box."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reading = nn.Linear(width, sum(READOUTS.values()) + 4)
        self.pointing = nn.Linear(width, sum(POINTED) + 4)


@dataclass(slots=True)
class Learner:
    """Trains everything behind the frozen tower in place, one step at a time."""

    model: Moondream
    pictures: Pictures
    packer: Packer
    total: int
    step: int = 0
    mistakes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    probes: Probes = field(init=False)
    optimizers: Optimizers = field(init=False)

    def __post_init__(self) -> None:
        text, region, projection = self.model.text, self.model.region, self.model.vision.proj_mlp
        self.probes = Probes(text.post_ln.normalized_shape[0])
        rest = [text.wte, *text.post_ln.parameters(), *text.lm_head.parameters(), *self.probes.parameters()]
        rest += [parameter for parameter in region.parameters() if parameter.requires_grad]
        self.optimizers = build_optimizers([*text.blocks.parameters(), *projection.parameters()], rest, MUON_RATE)
        self.packer.asker.pair_share = PAIR_SHARE

    def advance(self) -> tuple[dict[str, float], dict[str, float]]:
        """Do one step; returns its losses and the running share of exact answers by kind."""
        batch = to_batch(self.packer.rows(ROWS, PICTURE_SHARE))
        losses, is_exact = self._losses(batch)
        self.optimizers.step(torch.stack(list(losses.values())).sum(), self.step / self.total, self.step)
        self.step += 1
        for kind, exact in zip(batch.kinds, is_exact, strict=True):
            self.mistakes[kind] += FORGETTING * (float(not exact) - self.mistakes[kind])
        self.packer.weights = {kind: 0.15 + share for kind, share in self.mistakes.items()}
        return {name: loss.item() for name, loss in losses.items()}, {k: 1 - v for k, v in self.mistakes.items()}

    def _losses(self, batch: Batch) -> tuple[dict[str, torch.Tensor], list[bool]]:
        with torch.autocast("cpu", torch.bfloat16):
            states, reading, pointing = compiled_states(
                self.model.text, self._embeds(batch), batch.mask, batch.positions
            )
            is_answer = batch.answers[:, 1:] != NO_ANSWER
            logits = self.model.text.logits(states[:, :-1][is_answer])
        truth, answers = batch.ids[:, 1:][is_answer], batch.answers[:, 1:][is_answer]
        losses = {"text": F.cross_entropy(logits.float(), truth)}
        is_exact = exact_answers(logits, truth, answers, len(batch.kinds))
        flat = states.flatten(0, 1).float()
        coords, sizes, region = batch.coords.learned(), batch.sizes.learned(), self.model.region
        for name, found, numbers, bins in (
            ("place", region.coordinate_logits(flat[coords.at - 1])[:, None], coords, coords.values * BINS),
            ("size", region.size_logits(flat[sizes.at - 1]), sizes, size_bins(sizes.values)),
        ):
            losses[name] = 0.2 * _blurred_loss(found, bins)
            _note_far(is_exact, found, bins, numbers)
        losses["reading"] = 0.5 * self._reading_loss(batch, reading)
        losses["pointing"] = self._pointing_loss(batch, pointing)
        return losses, is_exact

    def _embeds(self, batch: Batch) -> torch.Tensor:
        region, embeds = self.model.region, self.model.text.embed(batch.ids)
        rows = self.model.vision.proj_mlp(self.pictures.features[batch.pictures].float())
        embeds = embeds.to(rows.dtype)
        embeds[batch.shown, 1 : 1 + rows.shape[1]] = rows
        flat = embeds.flatten(0, 1)
        places, sizes = batch.coords.values, batch.sizes.values
        places = places + PLACE_NOISE * torch.randn(places.shape)
        sizes = sizes * (1 + SIZE_NOISE * torch.randn(sizes.shape))
        with torch.autocast("cpu", enabled=False):
            flat[batch.coords.at] = region.encode_coordinate(places).to(flat.dtype)
            flat[batch.sizes.at] = region.encode_size(sizes).to(flat.dtype)
        return torch.unflatten(flat, 0, embeds.shape[:2])

    def _reading_loss(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        patches = self.pictures.owners.shape[1]
        seen = states[batch.shown, 1 : 1 + patches].flatten(0, 1).float()
        found = self.probes.reading(F.layer_norm(seen, seen.shape[-1:]))
        targets = self.pictures.targets[batch.pictures].flatten(0, 1)
        owners = self.pictures.owners[batch.pictures]
        boxes = self.pictures.boxes[batch.pictures].gather(1, owners.clamp(min=0)[..., None].expand(-1, -1, 4))
        return _read(found, targets, list(READOUTS.values()), boxes.flatten(0, 1), owners.flatten() >= 0)

    def _pointing_loss(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        said = states.flatten(0, 1)[batch.pointing].float()
        found = self.probes.pointing(F.layer_norm(said, said.shape[-1:]))
        picture, thing = batch.meant.unbind(-1)
        boxes = self.pictures.boxes[picture, thing.clamp(min=0)]
        return _read(found, batch.pointed, POINTED, boxes, thing >= 0)

    def state(self) -> dict[str, Any]:
        """All that `resume` needs to go on from here."""
        return {
            "model": self.model.state_dict(),
            "probes": self.probes.state_dict(),
            "optimizers": self.optimizers.state(),
            "step": self.step,
            "mistakes": self.mistakes,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from an earlier `state`, with fresh questions."""
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        self.optimizers.resume(state["optimizers"])
        self.step, self.mistakes = state["step"], {**self.mistakes, **state["mistakes"]}
        self.packer.asker.rng = np.random.default_rng([self.step, 3])


def size_bins(sizes: torch.Tensor) -> torch.Tensor:
    """The bins (not rounded) of widths and heights, on moondream2's logarithmic scale from 1/1024 to 1."""
    return (sizes.clamp(1 / 1024, 1).log2() + 10) / 10 * (BINS - 1)


def _blurred_loss(logits: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of (n, k, BINS) logits with bell curves about (n, k) bins."""
    away = torch.arange(BINS) - bins[..., None]
    truth = torch.softmax(-0.5 * (away / BLUR_BINS) ** 2, dim=-1)
    entropy = -(truth * truth.clamp(min=1e-9).log()).sum(-1)
    return (F.cross_entropy(logits.flatten(0, 1), truth.flatten(0, 1), reduction="none") - entropy.flatten()).mean()


def _note_far(is_exact: list[bool], logits: torch.Tensor, bins: torch.Tensor, numbers: Numbers) -> None:
    """Count answers as wrong in place whose numbers are far from true."""
    far = ((logits.argmax(-1) - bins).abs() > TOLERATED_BINS).any(-1)
    for answer in numbers.answers[far].tolist():
        is_exact[answer] = False


def _read(
    found: torch.Tensor, targets: torch.Tensor, classes: list[int], boxes: torch.Tensor, has_box: torch.Tensor
) -> torch.Tensor:
    """Loss of class scores followed by four numbers of a box."""
    *scores, box = torch.split(found, [*classes, 4], dim=-1)
    parts = [
        F.cross_entropy(score, truth, ignore_index=IGNORED)
        for score, truth in zip(scores, targets.unbind(-1), strict=True)
    ]
    off = F.smooth_l1_loss(box[has_box], boxes[has_box], beta=BOX_ERROR)
    return torch.stack(parts).mean() + 5 * off
