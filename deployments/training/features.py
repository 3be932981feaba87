"""What the frozen tower sees in each picture: from memory, from the cache on disk, or by running the tower once ever.

Records and keys are those of `vision_encoder`, so runs on any checkpoint with the same tower find them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cachetools import LRUCache

from deployments.bytes_cache import BytesCache
from deployments.config import ImageConfig
from deployments.errors import ConfigError, InvalidImage
from deployments.models.family import Pixels
from deployments.training.pairs import raise_problems
from deployments.training.pictures import Picture
from deployments.vision_encoder.cache import Features, feature_key, read_features, to_record
from deployments.vision_encoder.preparer import to_pixels
from deployments.vision_encoder.towers import SharedTower

TENANT = "training"  # whose pictures these are to the keys of the cache
MAX_TOWER_BATCH = 16  # pictures
MEMORY_BYTES = 1_000_000_000  # of features, in front of the disk


class FeatureStore:
    """Used by one thread. Calls block, and raise OSError when the disk fails."""

    def __init__(self, eye: SharedTower, disk: BytesCache, folder: Path, limits: ImageConfig, num_threads: int) -> None:
        self._eye = eye
        self._disk = disk
        self._folder = folder
        self._limits = limits
        self._num_threads = num_threads
        self._memory: LRUCache[str, Features] = LRUCache(MEMORY_BYTES, getsizeof=lambda features: features.array.nbytes)
        self.num_encoded = 0  # pictures that the tower had to look at

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        present = set(self._disk.keys())
        return [picture for picture in pictures if self._key(picture) not in present]

    def encode(self, pictures: Sequence[Picture], advance: Callable[[int], None] = lambda count: None) -> None:
        """Put their features on disk. What was done stays when it is interrupted.

        Raises ConfigError naming the entries whose pictures are no good, after the others, or that the disk is small.
        """
        problems: list[str] = []
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="preprocess") as pool:
            for start in range(0, len(pictures), MAX_TOWER_BATCH):
                batch = pictures[start : start + MAX_TOWER_BATCH]
                seen = list(self._see(batch, pool, problems))
                for picture, features in seen:
                    self._disk.put(self._key(picture), to_record(features))
                if start == 0 and seen:
                    self._require_room(seen[0][1].array.nbytes, len(pictures) - len(batch))
                advance(len(batch))
        raise_problems(problems)

    def read(self, picture: Picture) -> Features:
        features = self._memory.get(picture.id)
        if features is None:
            features = read_features(self._disk, self._key(picture))
            if features is None:  # damaged, or somebody emptied the cache meanwhile
                self.encode([picture])
                features = read_features(self._disk, self._key(picture))
                if features is None:
                    raise OSError(f"the feature cache {self._folder} does not keep what is written to it")
            if features.array.nbytes <= self._memory.maxsize:
                self._memory[picture.id] = features
        return features

    def _key(self, picture: Picture) -> str:
        tower, preprocessing, dtype = self._eye.loaded.identity
        return feature_key(TENANT, picture.id, tower, preprocessing, dtype)

    def _see(
        self, batch: Sequence[Picture], pool: ThreadPoolExecutor, problems: list[str]
    ) -> Iterator[tuple[Picture, Features]]:
        """Those that are pictures with what is in them; the others go to `problems`."""
        good: list[tuple[Picture, Pixels]] = []
        for picture, result in zip(batch, pool.map(self._prepare, batch), strict=True):
            if isinstance(result, Pixels):
                good.append((picture, result))
            else:
                problems.append(f"{picture.where}: picture {picture.path}: {result}")
        features = self._eye.run([pixels for _, pixels in good]) if good else []
        self.num_encoded += len(good)
        return zip((picture for picture, _ in good), features, strict=True)

    def _prepare(self, picture: Picture) -> Pixels | Exception:
        try:
            return to_pixels(picture.path.read_bytes(), self._limits, self._eye.loaded.preprocess)
        except (InvalidImage, OSError) as error:
            return error

    def _require_room(self, picture_bytes: int, remaining: int) -> None:
        free, wanted = shutil.disk_usage(self._folder).free, picture_bytes * remaining
        if wanted > free:
            raise ConfigError(
                f"the features of {remaining} more pictures take {wanted / 1e9:.1f} GB, and the disk of {self._folder} "
                f"has {free / 1e9:.1f} GB left: free some, or name another folder with --cache-dir",
                "cache_dir",
            )
