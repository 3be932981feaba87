"""Moondream's tokenizer: ids of what people write, and text of ids. Control tokens in people's texts are only text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from deployments.errors import CheckpointError
from deployments.models.moondream_tokens import TokenIds
from deployments.models.weights import reading
from deployments.models.words import check_text

NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# Of moondream/starmie-v1, where they stand in prompts; the words between them have no names to check.
RESERVED: Mapping[int, str] = {1: "<|md_reserved_0|>", 2: "<|md_reserved_1|>", 3: "<|md_reserved_2|>"}


class MoondreamTokenizer:
    """Thread-safe: nothing changes after __init__. Raises CheckpointError there."""

    def __init__(self, folder: Path, tokens: TokenIds, vocab_size: int) -> None:
        if not (folder / NAME).is_file():
            raise CheckpointError(f"there is no {folder / NAME}; {_way_out(tokens)}", "tokenizer")
        with reading(folder, "tokenizer"):
            self._tokenizer = Tokenizer.from_file(str(folder / NAME))
            self._plain = _without_control_tokens(self._tokenizer)
        self._require_fitting(folder, tokens, vocab_size)
        self._require_disarmed(folder)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. Raises InvalidRequest for text that is none."""
        return list(self._plain.encode(check_text(text)).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; an unfinished UTF-8 sequence shows as U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def to_json(self) -> str:
        """As a tokenizer.json has it."""
        return str(self._tokenizer.to_str())

    def _require_fitting(self, folder: Path, tokens: TokenIds, vocab_size: int) -> None:
        ends = {tokens.bos_id: END_OF_TEXT, tokens.eos_id: END_OF_TEXT}
        reserved = {token_id: name for token_id, name in RESERVED.items() if token_id in tokens.written}
        for token_id, name in {**reserved, **ends}.items():
            found = self._tokenizer.id_to_token(token_id)
            if found != name:
                raise CheckpointError(
                    f"{folder / NAME} does not fit the checkpoint's prompts: its token {token_id} is {found!r}, "
                    f"not {name!r}; {_way_out(tokens)}",
                    param="tokenizer",
                )
        greatest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if greatest >= vocab_size:
            raise CheckpointError(
                f"{folder / NAME} goes up to id {greatest}, but the model has {vocab_size} tokens; {_way_out(tokens)}",
                param="tokenizer",
            )

    def _require_disarmed(self, folder: Path) -> None:
        for token_id, token in self._tokenizer.get_added_tokens_decoder().items():
            if not token.content.isspace() and token_id in self.encode(token.content):
                raise CheckpointError(
                    f"{folder / NAME}: it makes {token.content!r} even of ordinary text", param="tokenizer"
                )


def _without_control_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same without added tokens, except those of white space alone, which older tokenizers have and which are text.

    A file may also switch on cutting and padding, which no prompt can bear.
    """
    description = {**json.loads(tokenizer.to_str()), "truncation": None, "padding": None}
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"].isspace()]
    plain = Tokenizer.from_str(json.dumps(description))
    for token in description["added_tokens"]:
        if plain.token_to_id(token["content"]) != token["id"]:
            raise ValueError(f"the token {token['content']!r} has another id without control tokens before it")
    return plain


def _way_out(tokens: TokenIds) -> str:
    if tokens.answer_id is None:
        return "leave out `tokenizer`, so that the checkpoint's own is read, or set it to the one it was trained with"
    return "set tokenizer: moondream/starmie-v1, which is where moondream2 has its tokenizer"
