"""Turns token ids into text as they come, and never emits half a character. Knows no model and no tokenizer class.

`tokenizers.decoders.DecodeStream` does not fit: it swallows an unfinished character at the end of an answer, and where
bytes that are no text follow others in a vocabulary with byte fallback, it raises "Invalid prefix encountered".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders show for bytes that are no character, or not yet one
MAX_UNFINISHED = 3  # of these at the end may still become one character: UTF-8 needs at most four bytes
WINDOW_TOKENS = 8  # kept as context of the newest token; more than any character's bytes, and leading-space rules


class Detokenizer:
    """Text of one answer. The pieces of all `push` and the `flush`, joined, are the decoded whole.

    That holds for byte-level BPE, where a later token changes only the unfinished end of the text, and for byte
    fallback, where it may change the text of all bytes since the last token that is none: a single wrong byte makes
    U+FFFD of each of them. So a run of `byte_token_ids` is held back until it ends.

    Only a window of the newest tokens is decoded again for each new one, so the cost per token is constant.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], byte_token_ids: AbstractSet[int] = frozenset()) -> None:
        self._decode = decode
        self._byte_token_ids = byte_token_ids
        self._window: list[int] = []
        self._num_emitted = 0  # characters of the window's text that were handed out

    def push(self, token_id: int) -> str:
        """The characters that this token settles; often its text, sometimes nothing."""
        # Twice: a lone space at the beginning of a text shows nothing in vocabularies that mark words by a space.
        if not self._decode((token_id, token_id)):
            return ""  # a special token; in the window it might push out all that has text
        self._window.append(token_id)
        if token_id in self._byte_token_ids:
            return ""
        text = self._decode(self._window)
        settled = len(text) - _num_unfinished(text)
        piece = text[self._num_emitted : settled]
        self._num_emitted = max(self._num_emitted, settled)
        if len(self._window) >= 2 * WINDOW_TOKENS:
            self._shorten(len(text) - self._num_emitted)
        return piece

    def flush(self) -> str:
        """What was held back; call it once, after the last token."""
        piece = self._decode(self._window)[self._num_emitted :]
        self._window, self._num_emitted = [], 0
        return piece

    def _shorten(self, num_held: int) -> None:
        """Drop the oldest tokens. A window that now begins inside a character or a run of bytes shows something else
        there, where all is emitted. Counting from the end keeps the held characters held: their bytes are among the
        newest tokens, since each of these has at least one.
        """
        self._window = self._window[-WINDOW_TOKENS:]
        self._num_emitted = max(0, len(self._decode(self._window)) - num_held)


def _num_unfinished(text: str) -> int:
    tail = text[-MAX_UNFINISHED:]
    return len(tail) - len(tail.rstrip(UNFINISHED))
