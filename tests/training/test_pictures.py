"""Pictures are known by their content, and missing ones by the line that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.config import ImageConfig
from deployments.errors import ConfigError
from deployments.training.pairs import Exchange, Pair
from deployments.training.pictures import open_gallery

LIMITS = ImageConfig(max_image_bytes=100)


def pair(folder: Path, name: str, line: int) -> Pair:
    return Pair(f"pairs.jsonl, line {line}", folder / name, (Exchange(None, "x"),))


def test_equal_files_are_one_picture(tmp_path: Path) -> None:
    for name, content in (("a.png", b"one"), ("b.png", b"two"), ("copy.png", b"one")):
        (tmp_path / name).write_bytes(content)
    pairs = [pair(tmp_path, name, line) for line, name in enumerate(("a.png", "b.png", "copy.png", "b.png"), 1)]
    gallery = open_gallery(pairs, LIMITS)
    assert gallery.shown == (0, 1, 0, 1)
    assert [picture.path.name for picture in gallery.pictures] == ["a.png", "b.png"]
    assert len({picture.id for picture in gallery.pictures}) == 2


def test_pictures_that_cannot_be_had_are_named_once_each(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "large.png").write_bytes(bytes(101))
    (tmp_path / "folder.png").mkdir()
    names = ["missing.png", "empty.png", "large.png", "folder.png", "missing.png"]
    with pytest.raises(ConfigError) as caught:
        open_gallery([pair(tmp_path, name, line) for line, name in enumerate(names, 1)], LIMITS)
    message = caught.value.message
    assert f"line 1: picture {tmp_path / 'missing.png'}: No such file or directory" in message
    assert "line 2" in message
    assert "the picture is empty" in message
    assert "101 bytes; at most 100" in message
    assert "Is a directory" in message
    assert "line 5" not in message


def test_the_count_of_pictures_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    counted = []
    open_gallery([pair(tmp_path, "a.png", 1)] * 3, LIMITS, lambda: counted.append(1))
    assert len(counted) == 3
