"""The loop is a plain AdamW loop with a schedule: the same steps written out by hand give the same weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.training.batches import IGNORED, Example
from deployments.training.options import Recipe

pytestmark = pytest.mark.torch

IMAGE_TOKENS = 16
RECIPE = Recipe(steps=6, batch_size=3, learning_rate=0.01, warmup_share=0.4, validation_share=0.0)


class Silence:
    """A Reporter, and a MetricsLog, that keep what they are told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def write(self, **values: float) -> None:
        self.lines.append(values)

    def stepped(self, *told: object) -> None:
        pass

    def evaluated(self, *told: object) -> None:
        pass


def examples(count: int) -> list[Example]:
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        tail = random.integers(5, 300, 4 + number % 3).astype(np.int32)
        targets = np.where(np.arange(len(tail)) < 2, IGNORED, np.roll(tail, -1)).astype(np.int32)
        made.append(Example(f"line {number}", number, np.array([1, 7], np.int32), tail, targets))
    return made


def feature_of(picture: int) -> Any:
    from deployments.vision_encoder.cache import Features

    return Features(np.random.default_rng(picture).normal(size=(IMAGE_TOKENS, 48)).astype(np.float32), "float32")


def model_of(folder: Path) -> Any:
    from deployments.models.llava import FAMILY
    from deployments.training.checkpoint import read_projector
    from deployments.training.model import ProjectorModel

    return ProjectorModel(FAMILY.open_language(folder, "cpu", "float32"), read_projector(folder))


def test_a_run_equals_the_steps_written_out(tiny_llava: Callable[..., Path]) -> None:
    import torch

    from deployments.training.batches import StepPlan, collate
    from deployments.training.loop import Lesson, Trainer, learning_rate
    from deployments.training.state import fresh_state

    data, log = examples(7), Silence()
    ours = model_of(tiny_llava())
    lesson = Lesson(data, [], IMAGE_TOKENS, feature_of)
    Trainer(ours, lesson, RECIPE, fresh_state(ours.weights()), lambda state: None, log, log).run(save_every=100)

    plain = model_of(tiny_llava())
    optimizer = torch.optim.AdamW(plain.projector.parameters(), lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, 6, RECIPE))
    plan = StepPlan([example.num_text_tokens for example in data], 3, 1, seed=0)
    losses = []
    for step in range(6):
        [indices] = plan.batches_of(step)
        batch = collate([data[index] for index in indices], IMAGE_TOKENS)
        loss = plain.loss(batch, [feature_of(picture) for picture in batch.pictures]) / batch.num_targets
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.projector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert [line["loss"] for line in log.lines] == losses
    assert all(tensor.equal(plain.weights()[name]) for name, tensor in ours.weights().items())


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    from deployments.training.loop import learning_rate

    recipe = Recipe(learning_rate=2.0, warmup_share=0.1)
    rates = [learning_rate(step, 100, recipe) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(0 < later < earlier for earlier, later in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_short_runs_have_a_rate_above_nothing(num_steps: int) -> None:
    from deployments.training.loop import learning_rate

    rates = [learning_rate(step, num_steps, Recipe()) for step in range(num_steps)]
    assert all(0 < rate <= Recipe().learning_rate for rate in rates)
