"""The training loop: steps, validation, early stop, and saving so that a run can stop anywhere and go on bit-equal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from deployments.errors import ConfigError
from deployments.training.batches import Batch, Example, StepPlan, collate, cut_by_length
from deployments.training.metrics_log import MetricsLog
from deployments.training.model import ProjectorModel
from deployments.training.options import Recipe
from deployments.training.state import RunState, Standing
from deployments.vision_encoder.cache import Features


class Reporter(Protocol):
    """Whoever watches a run."""

    def stepped(self, standing: Standing, loss: float, tokens_per_s: float) -> None: ...

    def evaluated(self, standing: Standing, loss: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learnt from, and what it is measured by."""

    training: Sequence[Example]
    validation: Sequence[Example]  # empty: none
    image_tokens: int  # of each picture
    read_features: Callable[[int], Features]  # by Example.picture


class Trainer:
    """One run, from the step its state is at to its end. `state` is the caller's no more."""

    def __init__(
        self,
        model: ProjectorModel,
        lesson: Lesson,
        recipe: Recipe,
        state: RunState,
        save: Callable[[RunState], None],
        log: MetricsLog,
        reporter: Reporter,
    ) -> None:
        self._model = model
        self._lesson = lesson
        self._recipe = recipe
        self._save = save
        self._log = log
        self._reporter = reporter
        lengths = [example.num_text_tokens for example in lesson.training]
        self._plan = StepPlan(lengths, recipe.batch_size, recipe.accumulation, recipe.seed)
        self.num_steps = recipe.steps or (recipe.epochs or 1) * self._plan.steps_per_epoch
        self._standing = state.standing
        self._best = state.best
        self._optimizer = _open_optimizer(model, recipe, state)

    def run(self, save_every: int, is_stopped: Callable[[], bool] = lambda: False) -> RunState:
        """Train to the end, or until `is_stopped`, which is asked after every step and every batch of validation.

        The state that comes back is saved. Raises ConfigError when the loss is no number any more.
        """
        standing = self._standing
        while not standing.ended and not is_stopped():
            if self._must_evaluate():
                self._evaluate(is_stopped)
            elif standing.step == self.num_steps:
                standing.ended = "steps"
            else:
                self._step()
                if standing.step % save_every == 0:
                    self._save_now()
        self._save_now()
        return self._state()

    # ------------------------------------------------------------------------------- steps

    def _step(self) -> None:
        standing, started = self._standing, time.perf_counter()
        batches = [self._collate(indices) for indices in self._plan.batches_of(standing.step)]
        num_targets = sum(batch.num_targets for batch in batches)
        rate = learning_rate(standing.step, self.num_steps, self._recipe)
        loss = 0.0
        for batch in batches:
            part = self._model.loss(batch, self._features(batch)) / num_targets
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        norm = self._move(rate)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise ConfigError(
                f"the loss of step {standing.step + 1} is {loss}, its gradient {norm}: lower the learning rate",
                "learning_rate",
            )
        tokens = sum(batch.num_tokens for batch in batches)
        tokens_per_s = tokens / (time.perf_counter() - started)
        standing.step += 1
        standing.tokens += tokens
        self._log.write(
            step=standing.step, loss=loss, learning_rate=rate, gradient_norm=norm, tokens_per_s=round(tokens_per_s, 1)
        )
        self._reporter.stepped(standing, loss, tokens_per_s)

    def _move(self, rate: float) -> float:
        """One step of the optimizer; returns the gradient's norm before it was clipped."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self._model.projector.parameters(), self._recipe.max_gradient_norm)
        if torch.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm.item()

    def _collate(self, indices: Iterable[int]) -> Batch:
        return collate([self._lesson.training[index] for index in indices], self._lesson.image_tokens)

    def _features(self, batch: Batch) -> list[Features]:
        return [self._lesson.read_features(picture) for picture in batch.pictures]

    # ------------------------------------------------------------------------------- validation

    def _must_evaluate(self) -> bool:
        step = self._standing.step
        is_due = step % self._recipe.evaluate_every == 0 or step == self.num_steps
        return bool(self._lesson.validation) and is_due and self._standing.evaluated_step != step

    def _evaluate(self, is_stopped: Callable[[], bool]) -> None:
        """Nothing changes when it is stopped in between: the run then goes on with this evaluation."""
        loss = self._validation_loss(is_stopped)
        if loss is None:
            return
        standing = self._standing
        standing.evaluated_step = standing.step
        if standing.first_loss is None:
            standing.first_loss = loss
        if standing.best_loss is None or loss < standing.best_loss:
            standing.best_loss, standing.best_step, standing.evaluations_without_gain = loss, standing.step, 0
            self._best = self._model.weights()
        else:
            standing.evaluations_without_gain += 1
        if self._recipe.patience is not None and standing.evaluations_without_gain >= self._recipe.patience:
            standing.ended = "patience"
        self._log.write(step=standing.step, validation_loss=loss)
        self._reporter.evaluated(standing, loss)

    @torch.no_grad()
    def _validation_loss(self, is_stopped: Callable[[], bool]) -> float | None:
        """Mean over all targets; None when stopped."""
        loss, num_targets = 0.0, 0
        for batch in self._validation_batches():
            if is_stopped():
                return None
            loss += self._model.loss(batch, self._features(batch)).item()
            num_targets += batch.num_targets
        return loss / num_targets

    def _validation_batches(self) -> Iterator[Batch]:
        examples = self._lesson.validation
        lengths = np.array([example.num_text_tokens for example in examples])
        for cut in cut_by_length(np.arange(len(examples)), lengths, self._recipe.batch_size):
            yield collate([examples[index] for index in cut], self._lesson.image_tokens)

    # ------------------------------------------------------------------------------- state

    def _save_now(self) -> None:
        self._save(self._state())

    def _state(self) -> RunState:
        weights = self._model.weights()
        if not self._lesson.validation:
            self._standing.best_step, self._best = self._standing.step, weights
        return RunState(self._standing, weights, self._best, *_moments(self._model, self._optimizer))


def learning_rate(step: int, num_steps: int, recipe: Recipe) -> float:
    """Of the step with this number, from 0: up in a line, then down along half a cosine to nothing."""
    num_warmup = math.ceil(recipe.warmup_share * num_steps)
    if step < num_warmup:
        return recipe.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _open_optimizer(model: ProjectorModel, recipe: Recipe, state: RunState) -> torch.optim.AdamW:
    """With the moments of `state`, which is on the CPU."""
    model.load_weights(state.projector)
    named = dict(model.projector.named_parameters())
    optimizer = torch.optim.AdamW(named.values(), lr=recipe.learning_rate, weight_decay=0.0)
    if state.first_moments:
        moments = {
            number: {
                "step": torch.tensor(float(state.standing.step)),
                "exp_avg": state.first_moments[name],
                "exp_avg_sq": state.second_moments[name],
            }
            for number, name in enumerate(named)
        }
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return optimizer


def _moments(
    model: ProjectorModel, optimizer: torch.optim.AdamW
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """AdamW's by the projector's names; empty before the first step."""
    if not optimizer.state:
        return {}, {}
    named = model.projector.named_parameters()
    states = {name: optimizer.state[parameter] for name, parameter in named}
    first = {name: state["exp_avg"].detach().cpu().clone() for name, state in states.items()}
    second = {name: state["exp_avg_sq"].detach().cpu().clone() for name, state in states.items()}
    return first, second
