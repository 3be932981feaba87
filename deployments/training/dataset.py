"""What a run learns from and is measured by: pairs, the pictures that they show, and how they are parted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.config import ImageConfig
from deployments.errors import ConfigError
from deployments.training.batches import Example, draw_validation_pictures
from deployments.training.examples import ExampleBuilder
from deployments.training.options import Places, Recipe
from deployments.training.pairs import Pair, read_pairs
from deployments.training.pictures import Gallery, Picture, open_gallery


@dataclass(frozen=True, slots=True)
class Dataset:
    training: Sequence[Pair]
    validation: Sequence[Pair]  # of a file of their own; none: a share of the pictures is drawn
    gallery: Gallery  # of training, then of validation

    @property
    def pictures(self) -> Sequence[Picture]:
        return self.gallery.pictures

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Of what is said and shown, wherever the pictures lie."""
        count = len(self.training)
        return {
            "data": self._fingerprint(self.training, self.gallery.shown[:count]),
            "validation": self._fingerprint(self.validation, self.gallery.shown[count:]) if self.validation else None,
        }

    def _fingerprint(self, pairs: Sequence[Pair], shown: Sequence[int]) -> str:
        digest = hashlib.sha256()
        for pair, number in zip(pairs, shown, strict=True):
            digest.update(f"{self.pictures[number].id} {pair.exchanges!r}\n".encode())
        return digest.hexdigest()


def read_dataset(
    places: Places, recipe: Recipe, limits: ImageConfig, count: Callable[[int], Callable[[int], None]]
) -> Dataset:
    """`count` is told how many pictures will be read, and what it gives, of each. Blocks. Raises ConfigError."""
    if places.validation is not None and recipe.validation_share:
        raise ConfigError("a validation file takes the place of validation_share: set that to 0", "validation_share")
    if recipe.patience is not None and places.validation is None and not recipe.validation_share:
        raise ConfigError("patience needs validation: a validation_share above 0, or a validation file", "patience")
    training, validation = read_pairs(places.data), _read_validation(places.validation)
    advance = count(len(training) + len(validation))
    gallery = open_gallery([*training, *validation], limits, lambda: advance(1))
    return Dataset(training, validation, gallery)


def _read_validation(path: Path | None) -> list[Pair]:
    return read_pairs(path) if path is not None else []


def part(dataset: Dataset, builder: ExampleBuilder, recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Examples of training and of validation. Raises ConfigError naming entries that give none."""
    count, shown = len(dataset.training), dataset.gallery.shown
    examples = builder.build_all(dataset.training, shown[:count])
    if dataset.validation:
        return examples, builder.build_all(dataset.validation, shown[count:])
    drawn = draw_validation_pictures(len(dataset.pictures), recipe.validation_share, recipe.seed)
    return (
        [example for example in examples if example.picture not in drawn],
        [example for example in examples if example.picture in drawn],
    )
