"""Reads the pictures that pairs name and knows each by its content, so that copies count as one. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.config import ImageConfig
from deployments.errors import InvalidImage
from deployments.images.check import check_num_bytes
from deployments.training.pairs import Pair, raise_problems


@dataclass(frozen=True, slots=True)
class Picture:
    path: Path
    id: str  # SHA-256 of the file's bytes, hex
    where: str  # the first entry that shows it


@dataclass(frozen=True, slots=True)
class Gallery:
    pictures: tuple[Picture, ...]  # distinct
    shown: tuple[int, ...]  # of each pair, index into pictures


def open_gallery(pairs: Sequence[Pair], limits: ImageConfig, advance: Callable[[], None] = lambda: None) -> Gallery:
    """Read every picture once. Blocks. Raises ConfigError naming the entries whose pictures cannot be had."""
    pictures: dict[str, Picture] = {}
    numbers: dict[str, int] = {}  # by content
    known: dict[Path, str | None] = {}  # content by path; None: it cannot be had, and that is said already
    problems: list[str] = []
    for pair in pairs:
        if pair.image not in known:
            try:
                content_id = _content_id(pair.image, limits)
            except (OSError, InvalidImage) as error:
                problems.append(f"{pair.where}: picture {pair.image}: {_reason(error)}")
                known[pair.image] = None
                continue
            known[pair.image] = content_id
            numbers.setdefault(content_id, len(numbers))
            pictures.setdefault(content_id, Picture(pair.image, content_id, pair.where))
        advance()
    raise_problems(problems)
    return Gallery(tuple(pictures.values()), tuple(numbers[known[pair.image] or ""] for pair in pairs))


def _content_id(path: Path, limits: ImageConfig) -> str:
    data = path.read_bytes()
    check_num_bytes(data, limits)
    return hashlib.sha256(data).hexdigest()


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
