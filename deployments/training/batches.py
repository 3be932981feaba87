"""Which examples go through the model in which step: examples of similar length together, in an order that seed and
epoch alone decide. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.errors import ConfigError

IGNORED = -100  # target of a position that is not learnt from; what torch's cross_entropy passes over
SORTED_BATCHES = 50  # are cut from examples sorted by length, and then shuffled
VALIDATION_STREAM = 1_000_003  # of random numbers, apart from every epoch's


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation about a picture, as the tokens before and behind the picture's features."""

    where: str  # the entry it is from
    picture: int  # index into the gallery
    head: np.ndarray  # (H,) int32 token ids
    tail: np.ndarray  # (T,) int32 token ids
    targets: np.ndarray  # (T,) int32: what follows each token of the tail, IGNORED where that is not to be learnt

    @property
    def num_text_tokens(self) -> int:
        return len(self.head) + len(self.tail)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows are padded on the right, where causal attention does not look: no mask is needed."""

    pictures: tuple[int, ...]  # (B,)
    token_ids: np.ndarray  # (B, S) int64; 0 under pictures and padding
    image_places: np.ndarray  # (B * image_tokens,) int64 into the flattened (B, S)
    columns: np.ndarray  # (K,) int64: positions after which some row has a target
    targets: np.ndarray  # (B, K) int64
    num_targets: int
    num_tokens: int  # without padding


def collate(examples: Sequence[Example], image_tokens: int) -> Batch:
    length = max(example.num_text_tokens for example in examples) + image_tokens
    token_ids = np.zeros((len(examples), length), np.int64)
    targets = np.full((len(examples), length), IGNORED, np.int64)
    places = np.empty((len(examples), image_tokens), np.int64)
    for row, example in enumerate(examples):
        first, behind = len(example.head), len(example.head) + image_tokens
        token_ids[row, :first] = example.head
        token_ids[row, behind : behind + len(example.tail)] = example.tail
        targets[row, behind : behind + len(example.tail)] = example.targets
        places[row] = np.arange(row * length + first, row * length + behind)
    is_target = targets != IGNORED
    columns = np.flatnonzero(is_target.any(axis=0))
    return Batch(
        pictures=tuple(example.picture for example in examples),
        token_ids=token_ids,
        image_places=places.reshape(-1),
        columns=columns,
        targets=targets[:, columns],
        num_targets=int(is_target.sum()),
        num_tokens=sum(example.num_text_tokens + image_tokens for example in examples),
    )


class StepPlan:
    """The batches of every step of a run, each computed from seed and step number, so that a run can go on anywhere."""

    def __init__(self, lengths: Sequence[int], batch_size: int, accumulation: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._accumulation = accumulation
        self._seed = seed
        self._epoch = -1  # whose batches are at hand
        self._batches: list[np.ndarray] = []
        self.steps_per_epoch = -(-self._num_batches // accumulation)

    @property
    def _num_batches(self) -> int:
        return -(-len(self._lengths) // self._batch_size)

    def batches_of(self, step: int) -> list[np.ndarray]:
        """Indices of examples, an array for each forward pass; the last step of an epoch may have fewer."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[index * self._accumulation : (index + 1) * self._accumulation]

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(len(self._lengths))
        batches: list[np.ndarray] = []
        size = self._batch_size * SORTED_BATCHES
        for start in range(0, len(order), size):
            group = order[start : start + size]
            batches += cut_by_length(group, self._lengths[group], self._batch_size)
        return [batches[index] for index in random.permutation(len(batches))]


def cut_by_length(indices: np.ndarray, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    by_length = indices[np.argsort(lengths, kind="stable")]
    return [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]


def draw_validation_pictures(num_pictures: int, share: float, seed: int) -> frozenset[int]:
    """Whole pictures, so that nothing is asked in validation about a picture that was trained on."""
    if share == 0:
        return frozenset()
    count = max(1, round(share * num_pictures))
    if count >= num_pictures:
        raise ConfigError(
            f"{num_pictures} pictures cannot be parted into training and a validation share of {share:g}: give more, a "
            "smaller share, a validation file, or --validation-share 0",
            "validation_share",
        )
    random = np.random.default_rng([seed, VALIDATION_STREAM])
    return frozenset(random.permutation(num_pictures)[:count].tolist())
