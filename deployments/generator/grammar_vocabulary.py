"""A model's vocabulary as llguidance reads it, and beside it one of single bytes, in which closings are searched."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from llguidance import LLTokenizer

NUM_BYTES = 256
BYTE_STOP = NUM_BYTES  # id of the token that ends a text of bytes
DECODERS = ("ByteLevel", "ByteFallback")  # what tells which bytes a token stands for


@runtime_checkable
class TokenizerSource(Protocol):
    """A prompt format whose tokenizer can be read by others."""

    def tokenizer_json(self) -> str:
        """As a tokenizer.json has it."""
        ...


class Vocabulary:
    """Thread-safe: nothing changes after __init__. That one holds the GIL, for 2 s with 150,000 tokens.

    Raises ValueError for tokenizers that do not say which bytes their tokens stand for.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, stop_token_ids: Collection[int]) -> None:
        from llguidance import LLTokenizer

        num_tokens = _count_tokens(tokenizer_json)
        self.stop_token_ids = frozenset(stop_token_ids)
        self.tokens = LLTokenizer(
            tokenizer_json,
            n_vocab=max(vocab_size, num_tokens),
            eos_token=sorted(self.stop_token_ids),
            slices=LLTokenizer.json_slices(),
        )
        self.bytes = open_bytes()
        self._num_tokens = num_tokens

    def bytes_of(self, token_id: int) -> bytes:
        """What the token adds to the text; nothing for special tokens, which no grammar allows."""
        if token_id >= self._num_tokens or self.tokens.is_special_token(token_id):
            return b""
        return self.tokens.decode_bytes([token_id])

    def encode(self, text: bytes) -> tuple[int, ...] | None:
        """Few tokens that stand for the bytes, which may begin inside a character; None if there are none.

        Not what the tokenizer makes of them: it splits digits and words, for which nothing is left here.
        """
        num_loose = _count_continuation(text)
        token_ids = [*self.tokens.tokenize_bytes(text[:num_loose])] if num_loose else []
        token_ids += self.tokens.greedy_tokenize(text[num_loose:].decode())
        return tuple(token_ids) if self.tokens.decode_bytes(token_ids) == text else None


def open_bytes() -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), eos_token=BYTE_STOP, slices=[])


class _Bytes:
    """What llguidance asks of a tokenizer of another kind."""

    eos_token_id = BYTE_STOP
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(NUM_BYTES)), b"<stop>")
    special_token_ids = (BYTE_STOP,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _count_tokens(tokenizer_json: str) -> int:
    """Raises ValueError for what llguidance cannot read; it would panic."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    num_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if max(tokenizer.get_vocab(with_added_tokens=True).values()) >= num_tokens:
        raise ValueError("its tokenizer leaves out ids")
    decoder = json.dumps(json.loads(tokenizer_json)["decoder"])
    if not any(f'"{name}"' in decoder for name in DECODERS):
        raise ValueError(f"its tokenizer's decoder is neither {' nor '.join(DECODERS)}")
    return num_tokens


def _count_continuation(text: bytes) -> int:
    """Bytes at the beginning that go on with a character."""
    return next((index for index, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))
