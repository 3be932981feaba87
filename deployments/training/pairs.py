"""Reads image-text pairs: a JSON object a line, or a JSON array as LLaVA's data is published. Standard library only.

Every entry that is wrong is named with its place and with what is allowed; nothing is trained on the rest meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import ConfigError

MAX_REPORTED = 10  # bad entries in one message
PICTURE_MARK = "<image>"  # where LLaVA's data shows the picture
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
TURN_KEYS = ({"role", "content"}, {"from", "value"})
ALLOWED_KEYS = {"id", "image", "prompt", "response", "conversations"}


@dataclass(frozen=True, slots=True)
class Exchange:
    question: str | None  # None: the family's words for a caption
    answer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One picture, shown with the first question, and what is said about it."""

    where: str  # "pairs.jsonl, line 3"
    image: Path
    exchanges: tuple[Exchange, ...]  # at least one


class BadEntry(Exception):
    """What is wrong with one entry, without its place."""


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of the file. Raises ConfigError naming each bad entry, or that there is none at all."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the data {path} cannot be read: {error.strerror}", "data") from error
    pairs, problems = [], []
    for where, entry in _entries(path, content):
        try:
            pairs.append(_parse_pair(where, path.parent, entry))
        except BadEntry as error:
            problems.append(f"{where}: {error}")
    raise_problems(problems)
    if not pairs:
        raise ConfigError(f'{path} holds no pairs; a line is {{"image": ..., "prompt": ..., "response": ...}}', "data")
    return pairs


def raise_problems(problems: Sequence[str]) -> None:
    """Raises ConfigError with the first of them, if there is any."""
    if not problems:
        return
    rest = len(problems) - MAX_REPORTED
    lines = [*problems[:MAX_REPORTED], *([f"and {rest} more"] if rest > 0 else [])]
    raise ConfigError("the data cannot be trained on:\n  " + "\n  ".join(lines), "data")


def _entries(path: Path, content: bytes) -> Iterator[tuple[str, object]]:
    """Each entry and its place. What is no JSON comes as the BadEntry that says so, for its turn."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip()[:1] == b"[":
        whole = _decode(content)
        if isinstance(whole, BadEntry):
            raise ConfigError(f"{path}: {whole}", "data")
        assert isinstance(whole, list)
        yield from ((f"{path.name}, entry {number}", entry) for number, entry in enumerate(whole, 1))
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield f"{path.name}, line {number}", _decode(line)


def _decode(text: bytes) -> object:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        return BadEntry(f"is not UTF-8: {error}")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return BadEntry(f"is not JSON: {error.msg} ({line}column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of very many digits, brackets in brackets
        return BadEntry(f"is not JSON that can be read: {error}")


def _parse_pair(where: str, folder: Path, entry: object) -> Pair:
    if isinstance(entry, BadEntry):
        raise entry
    if not isinstance(entry, dict):
        raise BadEntry(f"is {_kind(entry)} instead of an object")
    if unknown := entry.keys() - ALLOWED_KEYS:
        raise BadEntry(f"unknown key {sorted(unknown)[0]!r}; allowed are {', '.join(sorted(ALLOWED_KEYS))}")
    if "image" not in entry:
        raise BadEntry('has no "image", and a projector learns from pictures alone')
    image = folder / Path(_text(entry, "image"))
    return Pair(where, image, tuple(_exchanges(entry)))


def _exchanges(entry: Mapping[str, object]) -> list[Exchange]:
    if "conversations" not in entry:
        if "response" not in entry:
            raise BadEntry('has neither "response" nor "conversations"')
        question = _without_mark(_text(entry, "prompt")) if "prompt" in entry else None
        return [Exchange(question, _text(entry, "response").strip())]
    if both := entry.keys() & {"prompt", "response"}:
        raise BadEntry(f'has "conversations" and "{sorted(both)[0]}"; one of them says it all')
    return _conversation(entry["conversations"])


def _conversation(turns: object) -> list[Exchange]:
    if not isinstance(turns, list) or not turns:
        raise BadEntry('"conversations" must be a list of turns, and not be empty')
    texts = [_turn(turn, index) for index, turn in enumerate(turns)]
    if len(texts) % 2:
        raise BadEntry(f'"conversations" ends with a question: {len(texts)} turns, but answers are what is learnt')
    questions = [_without_mark(texts[0]), *texts[2::2]]
    if any(PICTURE_MARK in question for question in questions):
        raise BadEntry(f"{PICTURE_MARK} may stand once, in the first question: there is one picture")
    return [Exchange(question, answer.strip()) for question, answer in zip(questions, texts[1::2], strict=True)]


def _turn(turn: object, index: int) -> str:
    """The text of a turn that is in its place."""
    place = f"turn {index + 1} of conversations"
    if not isinstance(turn, dict) or set(turn) not in TURN_KEYS:
        raise BadEntry(f'{place} must be {{"role", "content"}} or {{"from", "value"}}')
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    role = turn[role_key]
    if not isinstance(role, str) or role not in ROLES:
        raise BadEntry(f"{place} has {role_key} {role!r}; allowed are {', '.join(ROLES)}")
    expected = "assistant" if index % 2 else "user"
    if ROLES[role] != expected:
        raise BadEntry(f"{place} is the {ROLES[role]}'s; user and assistant take turns, the user begins")
    return _text(turn, text_key, place)


def _text(entry: Mapping[str, object], key: str, place: str = "") -> str:
    value, prefix = entry[key], f"{place}: " if place else ""
    if not isinstance(value, str):
        raise BadEntry(f'{prefix}"{key}" is {_kind(value)} instead of a string')
    if not value.strip():
        raise BadEntry(f'{prefix}"{key}" is empty')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadEntry(f'{prefix}"{key}" holds half a surrogate pair, which is no character')
    return value


def _without_mark(question: str) -> str:
    """The picture always comes first; where in the question the mark stood is not what the template goes by."""
    before, mark, after = question.partition(PICTURE_MARK)
    text = f"{before.rstrip()}\n{after.lstrip()}".strip() if mark else question
    if PICTURE_MARK in text:
        raise BadEntry(f"{PICTURE_MARK} may stand once: there is one picture")
    if not text:
        raise BadEntry("the first question says nothing besides the picture")
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
