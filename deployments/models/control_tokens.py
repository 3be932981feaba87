"""Encodes text in which a control token counts only where a template wrote it; knows no templates.

What people wrote is sealed before a template is rendered: whatever could be a control token there, or become one
together with what stands beside it, gives way to a mark that nobody can guess. So all control tokens of the rendered
text are the template's own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from deployments.errors import CheckpointError

# Characters for private use with digits between them: no template and no normaliser changes them. (Letters might be
# written large, spaces trimmed.)
SEAL, ALIAS = "\ue000", "\ue001"


class Sealed:
    """The stretches of one conversation that are text and nothing else."""

    def __init__(self) -> None:
        self._mark = f"{SEAL}{_random_digits()}{SEAL}"  # a fresh one each time cannot be forged
        self._texts: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._texts)

    def seal(self, text: str) -> str:
        self._texts.append(text)
        return f"{self._mark}{len(self._texts) - 1}{SEAL}"

    def open(self, text: str) -> str:
        return self._replace(text, lambda sealed: sealed)

    def blank(self, text: str) -> str:
        """As long as the opened text, and with nothing but x in the sealed stretches."""
        return self._replace(text, lambda sealed: "x" * len(sealed))

    def _replace(self, text: str, change: Callable[[str], str]) -> str:
        # Split, because a regular expression of its own for each conversation costs a third of tokenising it.
        first, *others = text.split(self._mark)
        replaced = [first]
        for other in others:
            number, seal, rest = other.partition(SEAL)
            # Else a template cut it, and it stays as it is.
            is_whole = seal and number.isdecimal() and int(number) < len(self._texts)
            replaced.append(change(self._texts[int(number)]) + rest if is_whole else self._mark + other)
        return "".join(replaced)


class ControlTokens:
    """Thread-safe: nothing changes after __init__. Raises CheckpointError there."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        description = json.loads(tokenizer.to_str())
        # A file may switch on what no prompt can bear.
        description |= {"truncation": None, "padding": None}
        self.tokenizer = Tokenizer.from_str(json.dumps(description))
        added = {token_id: token.content for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        # An added token of white space alone (some tokenizers have them) is text, not control.
        self._names = {token_id: content for token_id, content in added.items() if not content.isspace()}
        self._ids = {content: token_id for token_id, content in self._names.items()}
        self._aliases = _make_aliases(self._names)
        self._aliased = _rename(description, {self._names[each]: alias for each, alias in self._aliases.items()})
        self._to_real = {
            self._aliased.token_to_id(self._aliases.get(token_id, content)): token_id
            for token_id, content in added.items()
        }
        self._anywhere = _one_of(self._ids)
        self._at_end = re.compile(f"(?:{_one_of(_beginnings(self._ids)).pattern})(?=\\s*\\Z)")
        self._at_start = re.compile(f"\\A(\\s*)({_one_of(_endings(self._ids)).pattern})")
        self._require_plain(folder, description["normalizer"])

    def _require_plain(self, folder: Path, normalizer: object) -> None:
        """Raises CheckpointError for control tokens that `seal` could miss."""
        tokens = self.tokenizer.get_added_tokens_decoder()
        for name, token_id in self._ids.items():
            if token_id in self._aliased.encode(name, add_special_tokens=False).ids:
                raise CheckpointError(f"checkpoint {folder}: its tokenizer makes {name!r} even of ordinary text")
            if tokens[token_id].single_word or (tokens[token_id].normalized and _changes_characters(normalizer)):
                raise CheckpointError(
                    f"checkpoint {folder}: its tokenizer finds {name!r} by what stands beside it (single_word) or in "
                    "changed text (normalized), so text that people write cannot be kept apart from it"
                )

    def id_of(self, name: str) -> int | None:
        return self._ids.get(name)

    def seal(self, text: str, sealed: Sealed) -> str:
        """The text with marks for all that is, or together with its neighbours may become, a control token."""
        text = self._anywhere.sub(lambda found: sealed.seal(found[0]), text)
        text = self._at_end.sub(lambda found: sealed.seal(found[0]), text)
        return self._at_start.sub(lambda found: found[1] + sealed.seal(found[2]), text)

    def encode(self, text: str, sealed: Sealed) -> list[int]:
        """Ids of the text with its seals opened; no special tokens are added."""
        if not sealed:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        encoding = self.tokenizer.encode(sealed.blank(text), add_special_tokens=False)
        text = sealed.open(text)
        # Let the tokenizer itself find the control tokens, each by its flags; then call them by names that it knows
        # and no text has. So all text between two of them is encoded as one, as it would be without any seals.
        for token_id, (start, stop) in reversed(list(zip(encoding.ids, encoding.offsets, strict=True))):
            start, stop = _without_space(text, start, stop)
            if text[start:stop] == self._names.get(token_id):  # and no character unknown to the vocabulary
                text = text[:start] + self._aliases[token_id] + text[stop:]
        ids = self._aliased.encode(text, add_special_tokens=False).ids
        return [self._to_real.get(token_id, token_id) for token_id in ids]


def _random_digits() -> str:
    return f"{secrets.randbits(128):039d}"


def _make_aliases(token_ids: Iterable[int]) -> dict[int, str]:
    nonce = _random_digits()
    return {token_id: f"{ALIAS}{nonce}{ALIAS}{token_id}{ALIAS}" for token_id in token_ids}


def _rename(description: dict[str, object], aliases: dict[str, str]) -> Tokenizer:
    """The tokenizer with other names for its control tokens, and with ids for them that may be others."""
    tokens = description["added_tokens"]
    assert isinstance(tokens, list)
    renamed = [{**token, "content": aliases.get(token["content"], token["content"])} for token in tokens]
    return Tokenizer.from_str(json.dumps({**description, "added_tokens": renamed, "post_processor": None}))


def _changes_characters(normalizer: object) -> bool:
    """Whether it changes more than spaces, so that other text may become a control token's name."""
    if not isinstance(normalizer, dict):
        return False
    if normalizer["type"] == "Sequence":
        return any(map(_changes_characters, normalizer["normalizers"]))
    return not (normalizer["type"] == "Prepend" or normalizer.get("pattern") == {"String": " "})


def _without_space(text: str, start: int, stop: int) -> tuple[int, int]:
    """Some control tokens swallow the white space beside them, which their aliases shall do as well."""
    found = text[start:stop]
    return start + len(found) - len(found.lstrip()), stop - (len(found) - len(found.rstrip()))


def _one_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first: Sequence[str] = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _beginnings(names: Iterable[str]) -> Iterable[str]:
    return (name[:length] for name in names for length in range(1, len(name)))


def _endings(names: Iterable[str]) -> Iterable[str]:
    return (name[start:] for name in names for start in range(1, len(name)))
