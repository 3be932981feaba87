"""What a training run is asked to do, and which of it decides the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from deployments.errors import ConfigError

CACHE_FOLDER = Path(".retina/training-features")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the weights that come out, besides data and base: a run is resumed with the same alone."""

    epochs: int | None = None  # None: `steps` says it; neither: one epoch
    steps: int | None = None
    batch_size: int = 16  # examples in a forward pass
    accumulation: int = 1  # forward passes in a step
    learning_rate: float = 1e-3  # at its peak
    warmup_share: float = 0.03  # of the steps
    max_gradient_norm: float = 1.0
    validation_share: float = 0.05  # of the pictures; 0: none, unless there is a file
    evaluate_every: int = 100  # steps
    patience: int | None = None  # evaluations without gain after which training stops; None: it goes to its end
    seed: int = 0
    threads: int = 1  # of torch: sums in another order round otherwise
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the language model; the projector is always float32

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("give epochs or steps, not both", "steps")

    def describe(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a run reads and writes: moving these changes nothing about the result."""

    data: Path
    out: Path
    base: str  # a folder, or a hub id
    revision: str | None = None
    validation: Path | None = None  # pairs of their own, instead of a share of the data
    cache: Path = CACHE_FOLDER  # of features
    save_every: int = 100  # steps
    restart: bool = False  # forget what an interrupted or finished run left
