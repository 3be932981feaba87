"""Which token ids mean what to a moondream checkpoint, and which surround what is asked of it. No tokenizer, no torch.

Ids come from config.json's `config.tokenizer`; where it is silent, from what moondream2's own code assumes: for the
tokenizer moondream/starmie-v1, or for the older one of the revisions that have the old tensor names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deployments.errors import CheckpointError
from deployments.models.moondream_config import read_sections
from deployments.types import CaptionLength, Skill

OLD_EOS_ID = 50256
LENGTHS: tuple[CaptionLength, ...] = ("short", "normal", "long")


@dataclass(frozen=True, slots=True)
class Around:
    """Ids before and after what is asked."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenIds:
    bos_id: int
    eos_id: int
    captions: Mapping[CaptionLength, tuple[int, ...]]  # whole prompts; empty: it writes none
    query: Around | None  # None: it has no such skill, likewise below
    detect: Around | None
    point: Around | None
    # None in all of these: of a time before reasoning and spatial references
    answer_id: int | None = None  # thoughts end, the answer begins; never inside an answer
    thinking_id: int | None = None  # thoughts begin
    coord_id: int | None = None  # stands for a coordinate
    size_id: int | None = None  # stands for a width and a height
    start_ground_points_id: int | None = None
    end_ground_id: int | None = None

    @property
    def question_end(self) -> tuple[int, ...]:
        """After a question that is answered at once.

        moondream2's code of the time of `answer_id` writes the suffix twice, which looks like a slip; but so it was
        published, and answers differ without.
        """
        assert self.query is not None
        return self.query.suffix * (1 if self.answer_id is None else 2)

    @property
    def skills(self) -> tuple[Skill, ...]:
        has: Mapping[Skill, bool] = {
            "caption": bool(self.captions),
            "query": self.query is not None,
            "detect": self.detect is not None,
            "point": self.point is not None,
        }
        return tuple(skill for skill, is_there in has.items() if is_there)

    @property
    def written(self) -> frozenset[int]:
        """All ids that a prompt may hold besides those of texts."""
        around = [each for each in (self.query, self.detect, self.point) if each is not None]
        groups = [*self.captions.values(), *(each.prefix + each.suffix for each in around)]
        marks = [getattr(self, name) for name in ("bos_id", "eos_id", *MARKS)]
        return frozenset([*(i for group in groups for i in group), *(i for i in marks if i is not None)])


MARKS = ("answer_id", "thinking_id", "coord_id", "size_id", "start_ground_points_id", "end_ground_id")

CURRENT = TokenIds(
    bos_id=0,
    eos_id=0,
    captions={"short": (1, 32708, 2, 12492, 3), "normal": (1, 32708, 2, 6382, 3), "long": (1, 32708, 2, 4059, 3)},
    query=Around((1, 15381, 2), (3,)),
    detect=Around((1, 7235, 476, 2), (3,)),
    point=Around((1, 2581, 2), (3,)),
    answer_id=3,
    thinking_id=4,
    coord_id=5,
    size_id=6,
    start_ground_points_id=7,
    end_ground_id=9,
)
OLD = TokenIds(
    bos_id=OLD_EOS_ID,
    eos_id=OLD_EOS_ID,
    captions={"short": (198, 198, 16438, 8305, 25), "normal": (198, 198, 24334, 1159, 25)},
    query=Around((198, 198, 24361, 25), (198, 198, 33706, 25)),
    detect=Around((198, 198, 47504, 25), (628,)),
    point=Around((198, 198, 12727, 25), (628,)),
)


def read_token_ids(folder: Path, *, has_old_names: bool, vocab_size: int) -> TokenIds:
    """Raises CheckpointError naming what is wrong with `config.tokenizer`."""
    where, given = f"{folder}/config.json, tokenizer", read_sections(folder)["tokenizer"]
    is_old = given["eos_id"] == OLD_EOS_ID if "eos_id" in given else has_old_names
    tokens = _overlay(OLD if is_old else CURRENT, given, where)
    outside = sorted(i for i in tokens.written if not 0 <= i < vocab_size)
    if outside:
        raise CheckpointError(f"{where}: id {outside[0]} is not one of the vocabulary's {vocab_size}", "checkpoint")
    return tokens


def _overlay(tokens: TokenIds, given: Mapping[str, object], where: str) -> TokenIds:
    known = ("bos_id", "eos_id", *MARKS)
    _require_known(given, (*known, "templates"), where)
    for name in known:
        if name in given:
            changed: dict[str, Any] = {name: _read_id(given[name], f"{where}.{name}")}
            tokens = replace(tokens, **changed)
    return _with_templates(tokens, given["templates"], f"{where}.templates") if "templates" in given else tokens


def _with_templates(tokens: TokenIds, given: object, where: str) -> TokenIds:
    templates = _read_object(given, where)
    _require_known(templates, ("caption", "query", "detect", "point"), where)
    captions = _read_object(templates.get("caption") or {}, f"{where}.caption")
    _require_known(captions, LENGTHS, f"{where}.caption")
    return replace(
        tokens,
        captions={each: _read_ids(captions[each], f"{where}.caption.{each}") for each in LENGTHS if each in captions},
        query=_read_around(templates.get("query"), f"{where}.query"),
        detect=_read_around(templates.get("detect"), f"{where}.detect"),
        point=_read_around(templates.get("point"), f"{where}.point"),
    )


def _read_around(given: object, where: str) -> Around | None:
    if given is None:
        return None
    around = _read_object(given, where)
    _require_known(around, ("prefix", "suffix"), where)
    return Around(
        _read_ids(around.get("prefix"), f"{where}.prefix"),
        _read_ids(around.get("suffix"), f"{where}.suffix"),
    )


def _read_object(given: object, where: str) -> Mapping[str, object]:
    if not isinstance(given, dict):
        raise CheckpointError(f"{where} should be an object, not {given!r}", "checkpoint")
    return given


def _read_ids(given: object, where: str) -> tuple[int, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise CheckpointError(f"{where} should be a list of token ids, not {given!r}", "checkpoint")
    return tuple(_read_id(each, where) for each in given)


def _read_id(given: object, where: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise CheckpointError(f"{where} should be a token id, not {given!r}", "checkpoint")
    return given


def _require_known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CheckpointError(f"{where}: unknown key {unknown[0]!r}; there is {', '.join(known)}", "checkpoint")
