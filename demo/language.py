"""Trains the language half on the frozen tower's features, asking more of what it still gets wrong."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conversations import ALL_KINDS
from optimizers import Optimizers, build_optimizers
from packing import NO_ANSWER, Batch, Packer
from pool import READOUTS
from torch import nn
from transformers import Idefics3ForConditionalGeneration, LlamaModel

ROWS, MUON_RATE = 10, 3e-3
PAIR_SHARE = 0.6  # of the pictures show two things for certain, which is what has to be learned longest
POINTING_LAYER = 2  # after so many layers a word that names a thing must know all about that thing
POINTED = list(READOUTS.values())[:3]  # classes of shape, color, place
FORGETTING = 0.01  # of the running share of mistakes by kind, an answer


@dataclass(slots=True)
class Tally:
    """A running share of inexact answers by kind, from which the weights of the kinds follow."""

    mistakes: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ALL_KINDS, 1.0))

    def note(self, kinds: list[str], is_exact: list[bool]) -> None:
        """Take in a batch's results."""
        for kind, exact in zip(kinds, is_exact, strict=True):
            self.mistakes[kind] += FORGETTING * (float(not exact) - self.mistakes[kind])

    def weights(self) -> dict[str, float]:
        """How often each kind should be asked."""
        return {kind: 0.15 + share for kind, share in self.mistakes.items()}


@dataclass(slots=True)
class Learner:
    """Trains the language half in place, one step at a time, on the tower's features of the talker's scenes."""

    model: Idefics3ForConditionalGeneration
    features: torch.Tensor  # (N, image_tokens, D)
    packer: Packer
    total: int
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    heads: nn.Linear = field(init=False)  # read what a word points at, in training only
    optimizers: Optimizers = field(init=False)

    def __post_init__(self) -> None:
        self.heads = nn.Linear(self.model.config.text_config.hidden_size, sum(POINTED))
        text_model = self.model.model.text_model
        rest = [*text_model.embed_tokens.parameters(), *text_model.norm.parameters()]
        rest += [*self.model.lm_head.parameters(), *self.heads.parameters()]
        self.optimizers = build_optimizers(list(text_model.layers.parameters()), rest, MUON_RATE)

    def advance(self) -> tuple[float, dict[str, float]]:
        """Do one step; returns its loss and the running share of exact answers by kind."""
        self.packer.talker.pair_share = PAIR_SHARE
        batch = self.packer.batch(ROWS, single_share=0.6 - 0.3 * self.step / self.total)
        loss = self._learn(batch)
        self.step += 1
        self.packer.talker.weights = self.tally.weights()
        return loss, {kind: 1 - share for kind, share in self.tally.mistakes.items()}

    def _learn(self, batch: Batch) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            logits, truth, answers, middle = predict(self.model, self.features, batch)
            found = self.heads(F.rms_norm(middle.flatten(0, 1)[batch.pointing], middle.shape[-1:]))
        loss = F.cross_entropy(logits.float(), truth)
        self.optimizers.step(loss + _pointing_loss(found, batch.pointed), self.step / self.total, self.step)
        self.tally.note(batch.kinds, exact_answers(logits, truth, answers, len(batch.kinds)))
        return loss.item()

    def state(self) -> dict[str, Any]:
        """All that `resume` needs to go on from here."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": self.optimizers.state(),
            "step": self.step,
            "mistakes": self.tally.mistakes,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from an earlier `state`, with fresh conversations."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizers.resume(state["optimizers"])
        self.step, self.tally.mistakes = state["step"], state["mistakes"]
        self.packer.rng = self.packer.talker.rng = np.random.default_rng([self.step, 3])


def predict(
    model: Idefics3ForConditionalGeneration, features: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, true ids and exchange number of all learned answer tokens; all states (B, L, D) after POINTING_LAYER."""
    embeds = model.get_input_embeddings()(batch.ids)
    is_image = (batch.ids == model.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(is_image, features[batch.pictures].to(embeds.dtype))
    states, middle = _states(model.model.text_model, embeds, batch.mask, batch.positions)
    is_answer = batch.answers[:, 1:] != NO_ANSWER
    logits = model.lm_head(states[:, :-1][is_answer])
    return logits, batch.ids[:, 1:][is_answer], batch.answers[:, 1:][is_answer], middle


def text_states(
    text_model: LlamaModel, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the language model's layers; last states, normed, and those after POINTING_LAYER."""
    angles = text_model.rotary_emb(embeds, positions)
    states = middle = embeds
    for number, layer in enumerate(text_model.layers, 1):
        states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=angles)
        middle = states if number == POINTING_LAYER else middle
    return text_model.norm(states), middle


_states = torch.compile(text_states, dynamic=False) if shutil.which("g++") else text_states


def _pointing_loss(found: torch.Tensor, pointed: torch.Tensor) -> torch.Tensor:
    parts = zip(torch.split(found.float(), POINTED, dim=-1), pointed.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(scores, classes) for scores, classes in parts]).mean()


def exact_answers(logits: torch.Tensor, truth: torch.Tensor, answers: torch.Tensor, count: int) -> list[bool]:
    """Whether greedy decoding would give each answer: true when every one of its tokens is the likeliest."""
    wrong = torch.zeros(count, dtype=torch.long).index_add_(0, answers, (logits.argmax(-1) != truth).long())
    return [mistakes == 0 for mistakes in wrong.tolist()]
