"""Builds the optimizers that both training stages use: Muon for hidden matrices, AdamW for all else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WARM_UP_STEPS = 100


@dataclass(slots=True)
class Optimizers:
    """Two optimizers that step as one, with a rate that warms up, stays, and falls to nothing."""

    parameters: list[nn.Parameter]
    muon: torch.optim.Optimizer
    adamw: torch.optim.Optimizer
    peaks: tuple[float, float]

    def step(self, loss: torch.Tensor, done: float, step: int) -> None:
        """Descend along the loss's gradient; `done` is the share of the training that lies behind."""
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = min((step + 1) / WARM_UP_STEPS, 1.0, 1.6 * (1 - done) + 0.003)
        for optimizer, peak in zip((self.muon, self.adamw), self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, Any]]:
        """What `resume` takes."""
        return [self.muon.state_dict(), self.adamw.state_dict()]

    def resume(self, state: list[dict[str, Any]]) -> None:
        """Go on from an earlier `state`."""
        self.muon.load_state_dict(state[0])
        self.adamw.load_state_dict(state[1])


def build_optimizers(hidden: list[nn.Parameter], rest: list[nn.Parameter], muon_rate: float) -> Optimizers:
    """Muon takes the matrices among `hidden`; AdamW, at two thirds of its rate, takes all others."""
    matrices = [parameter for parameter in hidden if parameter.ndim == 2]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in (*hidden, *rest) if id(parameter) not in taken]
    adamw_rate = muon_rate * 2 / 3
    muon = torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=0.01)
    return Optimizers([*matrices, *others], muon, adamw, (muon_rate, adamw_rate))
