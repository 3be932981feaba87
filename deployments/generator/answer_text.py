"""The text of an answer from its token ids: whole characters, up to the first stop string. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployments.generator.detokenizer import Detokenizer


class StopScanner:
    """Ends a text before the first stop string, holding back what could be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Text that is safe to show now, and whether a stop string was met; nothing may be pushed after one."""
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        safe = len(text) - held
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class AnswerText:
    """From token ids to the text a client may see: whole characters, up to the first stop string.

    White space before the answer's first character is left out: chat templates such as SmolVLM's end the prompt with
    "Assistant:" and write a stored answer as "Assistant: answer", so the space belongs to the template. Kept, it would
    be doubled in the next turn's prompt. Stop strings do not see it either: they are about what clients see.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str],
        byte_token_ids: frozenset[int] = frozenset(),  # of the prompt format
    ) -> None:
        self._decode = decode
        self._token_texts: dict[int, str] = {}  # by id, of those that were asked for
        self._detokenizer = Detokenizer(decode, byte_token_ids)
        self._scanner = StopScanner(stop)
        self._has_begun = False  # a character that is not white space was seen

    def push(self, token_id: int) -> tuple[str, bool]:
        """New text, and whether it ends here because of a stop string."""
        return self._scanner.push(self._begin(self._detokenizer.push(token_id)))

    def finish(self) -> tuple[str, bool]:
        """The held-back rest, and whether a stop string ended it."""
        text, stopped = self._scanner.push(self._begin(self._detokenizer.flush()))
        return (text, True) if stopped else (text + self._scanner.flush(), False)

    def text_of(self, token_id: int) -> str:
        """What one token shows by itself, the space before a word included; nothing for special tokens."""
        text = self._token_texts.get(token_id)
        if text is None:
            # After itself: vocabularies that mark words by a space leave it out at the beginning of a text.
            alone, twice = self._decode((token_id,)), self._decode((token_id, token_id))
            text = self._token_texts[token_id] = twice.removeprefix(alone) if twice.endswith(alone) else alone
        return text

    def _begin(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text
