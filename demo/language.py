"""Trains the language half on the frozen tower's features, asking more of what it still gets wrong."""

from __future__ import annotations

import itertools
import shutil
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from optimizers import Optimizers, build_optimizers
from packing import NO_ANSWER, ROW_TOKENS, Batch, Packer
from pool import READOUTS
from stages import Run, save_state
from torch import nn

ROWS, MUON_RATE = 10, 3e-3  # rows of ROW_TOKENS in a step; fewer where they are longer
PAIR_SHARE = 0.6  # of the pictures show two things for certain, which is what has to be learned longest
POINTING_LAYER = 2  # after so many layers a word that names a thing must know all about that thing
POINTED = list(READOUTS.values())[:3]  # classes of shape, color, place
FORGETTING = 0.01  # of the running share of mistakes by kind, an answer
SAVE_EVERY = 250  # steps


@dataclass(slots=True)
class Tally:
    """A running share of inexact answers by kind, from which the weights of the kinds follow."""

    mistakes: dict[str, float]

    def note(self, kinds: list[str], is_exact: list[bool]) -> None:
        """Take in a batch's results."""
        for kind, exact in zip(kinds, is_exact, strict=True):
            self.mistakes[kind] += FORGETTING * (float(not exact) - self.mistakes[kind])

    def weights(self) -> dict[str, float]:
        """How often each kind should be asked."""
        return {kind: 0.15 + share for kind, share in self.mistakes.items()}


def text_model_of(model: Any) -> Any:
    """The layers of a family's language half."""
    return model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model


def projector_of(model: Any) -> nn.Module:
    """What turns stored features into the language half's rows: LLaVA's projector, nothing in the other families."""
    projector: nn.Module = getattr(model.model, "multi_modal_projector", None) or nn.Identity()
    return projector


@dataclass(slots=True)
class Learner:
    """Trains the language half in place, one step at a time, on the tower's features of the talker's scenes."""

    model: Any  # a `...ForConditionalGeneration` of transformers
    features: Sequence[torch.Tensor]  # each (N, image_tokens, D); pictures are numbered through
    packer: Packer
    total: int
    rate: float = MUON_RATE
    step: int = 0
    tally: Tally = field(init=False)
    heads: nn.Linear = field(init=False)  # read what a word points at, in training only
    optimizers: Optimizers = field(init=False)

    def __post_init__(self) -> None:
        self.tally = Tally(dict.fromkeys(self.packer.talker.kinds, 1.0))
        text_model = text_model_of(self.model)
        self.heads = nn.Linear(text_model.config.hidden_size, sum(POINTED))
        rest = [*text_model.embed_tokens.parameters(), *text_model.norm.parameters(), *self.heads.parameters()]
        rest += [*self.model.lm_head.parameters(), *projector_of(self.model).parameters()]
        self.optimizers = build_optimizers(list(text_model.layers.parameters()), rest, self.rate)

    def advance(self) -> tuple[float, dict[str, float]]:
        """Do one step; returns its loss and the running share of exact answers by kind."""
        self.packer.talker.pair_share = PAIR_SHARE
        batch = self.packer.batch(
            ROWS * ROW_TOKENS // self.packer.row_tokens, single_share=0.6 - 0.3 * self.step / self.total
        )
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
    model: Any, features: Sequence[torch.Tensor], batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, true ids and exchange number of all learned answer tokens; all states (B, L, D) after POINTING_LAYER."""
    embeds = model.get_input_embeddings()(batch.ids)
    is_image = (batch.ids == model.config.image_token_id)[..., None]
    rows = projector_of(model)(_rows_of(features, batch.pictures.tolist()))  # (num_placeholders, D)
    embeds = embeds.masked_scatter(is_image, rows.to(embeds.dtype))
    text_model = text_model_of(model)
    has_grid_positions = hasattr(text_model.rotary_emb, "mrope_section")
    positions = batch.positions if has_grid_positions else batch.positions[0]
    states, middle = _states()(text_model, embeds, batch.mask, positions)
    is_answer = batch.answers[:, 1:] != NO_ANSWER
    logits = model.lm_head(states[:, :-1][is_answer])
    return logits, batch.ids[:, 1:][is_answer], batch.answers[:, 1:][is_answer], middle


def _rows_of(features: Sequence[torch.Tensor], pictures: list[int]) -> torch.Tensor:
    begins = [0, *itertools.accumulate(len(table) for table in features)]
    places = [(bisect_right(begins, picture) - 1, picture) for picture in pictures]
    rows = [features[table][picture - begins[table]] for table, picture in places]
    return torch.cat(rows) if rows else features[0][:0].flatten(0, 1)


def text_states(
    text_model: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the language model's layers; last states, normed, and those after POINTING_LAYER."""
    angles = text_model.rotary_emb(embeds, positions)
    states = middle = embeds
    for number, layer in enumerate(text_model.layers, 1):
        states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=angles)
        middle = states if number == POINTING_LAYER else middle
    return text_model.norm(states), middle


@cache
def _states() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`text_states`, compiled where there is a compiler."""
    return torch.compile(text_states, dynamic=False) if shutil.which("g++") else text_states


def _pointing_loss(found: torch.Tensor, pointed: torch.Tensor) -> torch.Tensor:
    parts = zip(torch.split(found.float(), POINTED, dim=-1), pointed.unbind(-1), strict=True)
    return torch.stack([F.cross_entropy(scores, classes) for scores, classes in parts]).mean()


def exact_answers(logits: torch.Tensor, truth: torch.Tensor, answers: torch.Tensor, count: int) -> list[bool]:
    """Whether greedy decoding would give each answer: true when every one of its tokens is the likeliest."""
    wrong = torch.zeros(count, dtype=torch.long).index_add_(0, answers, (logits.argmax(-1) != truth).long())
    return [mistakes == 0 for mistakes in wrong.tolist()]


def learn(run: Run, learner: Learner, path: Path, write: Callable[[], None]) -> None:
    """Take all steps, going on from what `path` keeps; `write` stores the checkpoint, now and then and at the end."""
    if path.exists():
        learner.resume(torch.load(path, weights_only=True))
    bar = run.bar("language", learner.total)
    while learner.step < learner.total:
        loss, exact = learner.advance()
        weakest = sorted(exact.items(), key=lambda item: item[1])[:4]
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in weakest)
        mean = np.mean(list(exact.values()))
        bar.show(learner.step, f"{run.minutes():.1f} min, loss {loss:.4f}, mean {mean:.1%}, {shares}")
        if learner.step % SAVE_EVERY == 0 or learner.step == learner.total:
            save_state(learner.state(), path)
            write()
