"""The tower looks at each picture once ever; what it saw comes from the cache, whoever asks."""

from __future__ import annotations

import shutil
from collections import Counter, namedtuple
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deployments.bytes_cache import BytesCache, open_bytes_cache
from deployments.config import ImageConfig
from deployments.errors import ConfigError
from deployments.models.family import Pixels
from deployments.training.features import MAX_TOWER_BATCH, TENANT, FeatureStore
from deployments.training.pictures import Picture
from deployments.vision_encoder.cache import feature_key
from deployments.vision_encoder.towers import LoadedTower, SharedTower

if TYPE_CHECKING:
    from collections.abc import Sequence


class Eye:
    """Preprocessor and tower in one: a picture's features are its mean colour; it counts what it sees."""

    width = 3

    def __init__(self, fingerprint: str = "tower") -> None:
        self.fingerprint = fingerprint
        self.seen: Counter[bytes] = Counter()
        self.batches: list[int] = []

    def __call__(self, picture: Image.Image) -> Pixels:
        return Pixels({"pixels": np.asarray(picture)}, cost=1, num_tokens=2)

    def encode(self, batch: Sequence[Pixels]) -> list[np.ndarray]:  # type: ignore[type-arg]
        self.batches.append(len(batch))
        means = [pixels.tensors["pixels"].mean(axis=(0, 1)) for pixels in batch]
        self.seen.update(mean.tobytes() for mean in means)
        return [np.tile(mean.astype(np.float32), (2, 1)) for mean in means]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[BytesCache]:
    with closing(open_bytes_cache(tmp_path / "cache")) as disk:
        yield disk


def store_of(eye: Eye, disk: BytesCache, folder: Path) -> FeatureStore:
    loaded = LoadedTower(eye, eye, "float32", "cpu")  # type: ignore[arg-type]
    return FeatureStore(SharedTower(loaded, ("llava",)), disk, folder / "cache", ImageConfig(), num_threads=2)


def paint(folder: Path, count: int, broken: tuple[int, ...] = ()) -> list[Picture]:
    pictures = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:50])
        pictures.append(Picture(path, f"{number:064x}", f"pairs.jsonl, line {number + 1}"))
    return pictures


def test_each_picture_is_looked_at_once_ever(disk: BytesCache, tmp_path: Path) -> None:
    pictures, eye = paint(tmp_path, 20), Eye()
    store = store_of(eye, disk, tmp_path)
    advanced: list[int] = []
    assert store.missing(pictures) == pictures
    store.encode(pictures, advanced.append)
    assert eye.batches == advanced == [MAX_TOWER_BATCH, 4]
    assert [store.read(picture).array.tolist() for picture in pictures[:3]] == [[[n, 0, 0]] * 2 for n in range(3)]

    blind = Eye()
    again = store_of(blind, disk, tmp_path)
    assert again.missing(pictures) == []
    assert again.read(pictures[7]).array.tolist() == [[7, 0, 0]] * 2
    assert (store.num_encoded, again.num_encoded, blind.batches) == (20, 0, [])


def test_another_tower_looks_for_itself(disk: BytesCache, tmp_path: Path) -> None:
    pictures = paint(tmp_path, 2)
    store_of(Eye(), disk, tmp_path).encode(pictures)
    assert store_of(Eye("other"), disk, tmp_path).missing(pictures) == pictures


def test_records_are_those_of_the_vision_encoder(disk: BytesCache, tmp_path: Path) -> None:
    [picture] = paint(tmp_path, 1)
    store_of(Eye(), disk, tmp_path).encode([picture])
    assert disk.keys() == [feature_key(TENANT, picture.id, "tower", "tower", "float32")]


def test_a_damaged_record_is_made_anew(disk: BytesCache, tmp_path: Path) -> None:
    pictures = paint(tmp_path, 2)
    store_of(Eye(), disk, tmp_path).encode(pictures)
    key = feature_key(TENANT, pictures[1].id, "tower", "tower", "float32")
    disk.put(key, b"no features")
    eye = Eye()
    store = store_of(eye, disk, tmp_path)
    assert store.read(pictures[1]).array.tolist() == [[1, 0, 0]] * 2
    assert store.read(pictures[1]).array.tolist() == [[1, 0, 0]] * 2
    assert eye.batches == [1]
    assert store_of(Eye(), disk, tmp_path).read(pictures[1]).array.tolist() == [[1, 0, 0]] * 2


def test_bad_pictures_are_named_and_the_others_kept(disk: BytesCache, tmp_path: Path) -> None:
    pictures = paint(tmp_path, 20, broken=(2, 18))
    pictures[5].path.write_bytes(b"%PDF-1.7")
    store = store_of(Eye(), disk, tmp_path)
    with pytest.raises(ConfigError) as caught:
        store.encode(pictures)
    message = caught.value.message
    assert f"line 3: picture {pictures[2].path}: the PNG picture is damaged" in message
    assert "line 6" in message
    assert "PDF" in message
    assert "line 19" in message
    assert len(store.missing(pictures)) == 3


def test_a_disk_that_is_too_small_is_told_before_it_is_full(
    disk: BytesCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1000, 950, 50))
    pictures = paint(tmp_path, 20)
    with pytest.raises(ConfigError, match=r"4 more pictures take 0\.0 GB"):
        store_of(Eye(), disk, tmp_path).encode(pictures)
    assert len(store_of(Eye(), disk, tmp_path).missing(pictures)) == 4  # those that were looked at are there
