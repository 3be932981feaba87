"""What a model thinks before it answers: text from token ids, and which stretch of it speaks of which points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deployments.generator.detokenizer import Detokenizer
from deployments.types import Grounding, Point


class Thoughts:
    """All thoughts of one answer. They come in phrases, each decoded by itself; their text is the phrases' joined."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        byte_token_ids: frozenset[int] = frozenset(),  # of the prompt format
    ) -> None:
        self._decode = decode
        self._byte_token_ids = byte_token_ids
        self._detokenizer: Detokenizer | None = None  # of the phrase that has begun
        self._num_chars = 0  # handed out, of all phrases
        self._start = 0  # of this phrase, in characters
        self._points: list[Point] = []  # of this phrase
        self._groundings: list[Grounding] = []

    def push(self, token_id: int, *, begins_phrase: bool) -> str:
        """The new text, with what was held back of the phrase before."""
        rest = self.end() if begins_phrase else ""
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self._decode, self._byte_token_ids)
        return rest + self._hand_out(self._detokenizer.push(token_id))

    def ground(self, point: Point) -> None:
        """The phrase that has begun speaks of `point`."""
        self._points.append(point)

    def end(self) -> str:
        """End the phrase; the text that was held back, nothing where none has begun."""
        rest = "" if self._detokenizer is None else self._hand_out(self._detokenizer.flush())
        if self._points:
            self._groundings.append(Grounding(self._start, self._num_chars, tuple(self._points)))
        self._detokenizer, self._points, self._start = None, [], self._num_chars
        return rest

    @property
    def groundings(self) -> tuple[Grounding, ...]:
        """Of the phrases that have ended, in order."""
        return tuple(self._groundings)

    def _hand_out(self, text: str) -> str:
        self._num_chars += len(text)
        return text
