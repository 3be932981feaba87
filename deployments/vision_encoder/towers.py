"""Loads the towers of the configured models, and lets two models share one only when both fingerprints are equal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deployments.config import RetinaConfig
from deployments.models.family import Options, Pixels, Preprocessor, SplittingTower, Tower
from deployments.models.placement import resolve_device, resolve_dtype
from deployments.models.registry import open_family
from deployments.models.sources import checkpoint_folder, picture_options
from deployments.types import FeatureDtype
from deployments.vision_encoder.cache import Features, freeze

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Identity = tuple[str, str, FeatureDtype]  # fingerprints of tower and preprocessing, and the dtype


@dataclass(frozen=True, slots=True)
class LoadedTower:
    """How one model sees: its preprocessing and its tower."""

    preprocess: Preprocessor
    tower: Tower
    dtype: FeatureDtype
    device: str  # "cpu" or "cuda"

    @property
    def identity(self) -> Identity:
        """Equal for two models whose features of a picture are equal."""
        return (self.tower.fingerprint, self.preprocess.fingerprint, self.dtype)


@dataclass(frozen=True, slots=True)
class SharedTower:
    loaded: LoadedTower
    models: tuple[str, ...]  # that see through it, in the order of the configuration

    @property
    def shares_passes(self) -> bool:
        """Whether it pays to send several pictures through the tower together."""
        return self.loaded.tower.shares_passes

    def split(self, pixels: Pixels) -> Sequence[Pixels]:
        """The pieces of a picture that may go through the tower apart; their features in a row are the picture's."""
        tower = self.loaded.tower
        return tower.split(pixels) if isinstance(tower, SplittingTower) else [pixels]

    def run(self, batch: Sequence[Pixels]) -> list[Features]:
        """Features of each picture or piece. Only for the thread that owns the tower."""
        results = self.loaded.tower.encode(batch)
        if len(results) != len(batch):
            raise RuntimeError(f"the tower gave {len(results)} results for {len(batch)} pictures")
        return [
            self._check(to_features(result, self.loaded.dtype), pixels)
            for result, pixels in zip(results, batch, strict=True)
        ]

    def _check(self, features: Features, pixels: Pixels) -> Features:
        expected = (pixels.num_tokens, self.loaded.tower.width)
        if features.array.shape != expected:
            raise RuntimeError(f"the tower gave features of shape {features.array.shape} instead of {expected}")
        return features


def share_towers(loaded: Mapping[str, LoadedTower]) -> list[SharedTower]:
    """One tower for all models of the same identity; who shares with whom goes to the log, one line a model."""
    groups: dict[Identity, list[str]] = {}
    for model, tower in loaded.items():
        groups.setdefault(tower.identity, []).append(model)
    for model, tower in loaded.items():
        _log(model, tower, [other for other in groups[tower.identity] if other != model])
    return [SharedTower(loaded[models[0]], tuple(models)) for models in groups.values()]


def load_towers(config: RetinaConfig) -> dict[str, LoadedTower]:
    """Preprocessing and tower of each model that has them. Blocks. Raises CheckpointError, ConfigError.

    Of equal towers one is kept, so that never more than one copy too many is in memory.
    """
    device = resolve_device(config.device)
    by_source: dict[tuple[str, Path, Options, FeatureDtype], LoadedTower] = {}
    by_identity: dict[Identity, LoadedTower] = {}
    loaded: dict[str, LoadedTower] = {}
    for model in config.models:
        if model.family == "fake":  # answers without seeing
            continue
        dtype = resolve_dtype(config.generator_of(model.name).dtype, device)
        source = (model.family, checkpoint_folder(model), picture_options(model), dtype)
        if source not in by_source:
            by_source[source] = _load_once(by_identity, *source, device)
        loaded[model.name] = by_source[source]
    return loaded


@contextlib.contextmanager
def torch_thread(num_threads: int) -> Iterator[None]:
    """What the thread of a torch tower runs inside. Set here, not in the opener: OpenMP keeps its count per thread."""
    import torch

    torch.set_num_threads(num_threads)
    with torch.inference_mode():
        yield


def to_features(result: torch.Tensor | np.ndarray, dtype: FeatureDtype) -> Features:
    """(image_tokens, D) in one piece of memory. The one place that knows tensors; towers without torch may give arrays.

    Copied only where it is a view of more, which would stay in memory with it: of a pass with others.
    """
    if isinstance(result, np.ndarray):
        return freeze(result.copy(), dtype)
    import torch

    tensor = result.detach().to("cpu").contiguous()
    if tensor.untyped_storage().nbytes() > tensor.nbytes:
        tensor = tensor.clone()
    bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return freeze(bits.numpy(), dtype)


def _load_once(
    known: dict[Identity, LoadedTower],
    family_name: str,
    folder: Path,
    options: Options,
    dtype: FeatureDtype,
    device: str,
) -> LoadedTower:
    """The known tower that equals this one, if there is one. Only its weights tell, so it is loaded first."""
    loaded = _load(family_name, folder, options, dtype, device)
    return known.setdefault(loaded.identity, loaded)


def _load(family_name: str, folder: Path, options: Options, dtype: FeatureDtype, device: str) -> LoadedTower:
    family = open_family(family_name)
    logger.info("loading the vision tower of %s (%s, %s)", folder, dtype, device)
    preprocess = family.open_preprocessor(folder, options)
    return LoadedTower(preprocess, family.open_tower(folder, device, dtype), dtype, device)


def _log(model: str, loaded: LoadedTower, others: Sequence[str]) -> None:
    tower, preprocess = loaded.tower, loaded.preprocess
    logger.info(
        "model %s: tower %s, preprocessing %s, width %d, %s on %s, %s",
        model,
        tower.fingerprint[:12],
        preprocess.fingerprint[:12],
        tower.width,
        loaded.dtype,
        loaded.device,
        f"shared with {', '.join(others)}" if others else "not shared",
    )
