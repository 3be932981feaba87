"""Turns token ids into text as they come, and never emits half a character. Knows no model and no tokenizer class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders show for bytes that are no character, or not yet one
MAX_UNFINISHED = 3  # of these at the end may still become one character: UTF-8 needs at most four bytes
WINDOW_TOKENS = 8  # kept as context of the newest token; more than any character's bytes, and leading-space rules


class Detokenizer:
    """Text of one answer. The pieces of all `push` and the `flush`, joined, are the decoded whole.

    That holds for every decoder in which later tokens change only the unfinished end of the text, as byte-level BPE.
    Only a window of the newest tokens is decoded again for each new one, so the cost per token is constant.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_emitted = 0  # characters of the window's text that were handed out

    def push(self, token_id: int) -> str:
        """The characters that this token settles; often its text, sometimes nothing."""
        self._window.append(token_id)
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
        """Drop the oldest tokens. A window that now begins inside a character shows U+FFFD there, where all is emitted.

        Counting from the end keeps the held characters held, provided that all their bytes are in the shorter window.
        They are when it shows more than MAX_UNFINISHED characters: had the first byte stayed outside, nothing but the
        bytes that follow it could be inside. Textless tokens can bring that about; then the window stays as it is.
        """
        newest = self._window[-WINDOW_TOKENS:]
        num_characters = len(self._decode(newest))
        if num_held == 0 or num_characters > MAX_UNFINISHED:
            self._window = newest
            self._num_emitted = max(0, num_characters - num_held)


def _num_unfinished(text: str) -> int:
    tail = text[-MAX_UNFINISHED:]
    return len(tail) - len(tail.rstrip(UNFINISHED))
