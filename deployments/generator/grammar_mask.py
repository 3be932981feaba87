"""Keeps one answer within its grammar, and within its number of tokens: it always knows an end that still fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deployments.errors import InvalidRequest
from deployments.generator.grammar_closing import Closer
from deployments.generator.grammar_place import Place
from deployments.generator.grammar_vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher

MAX_SEARCH_BYTES = 1_000  # looked at for a shorter end while the engine waits: some milliseconds


@dataclass(frozen=True, slots=True)
class End:
    """The rest of a document."""

    text: bytes
    token_ids: tuple[int, ...]  # what stops the answer left out

    @property
    def num_tokens(self) -> int:
        """With the one that stops."""
        return len(self.token_ids) + 1


class GrammarMask:
    """A TokenMask. After each token there is an end of the document that fits in what is left of the budget."""

    def __init__(
        self, vocabulary: Vocabulary, tokens: LLMatcher, text: LLMatcher, end: End, max_new_tokens: int
    ) -> None:
        """`tokens` and `text` are this answer's own, of the same grammar; `end` is a whole document."""
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._text = text
        self._closer = Closer(text)
        self._place = Place()
        self._end = end
        self._num_left = max_new_tokens
        self._weighed: tuple[int, End | None] | None = None  # the token that was looked at last, the end after it

    def fill(self, words: torch.Tensor) -> None:
        """Raises InvalidRequest where llguidance's limits end the answer."""
        import torch

        tokens, stop_token_ids = self._tokens, self._vocabulary.stop_token_ids
        # A document that nothing may follow allows its stop tokens alone, which are set below.
        if not tokens.is_stopped():
            # As many words as the library's vocabulary takes, which may be the longer one.
            allowed = torch.frombuffer(bytearray(tokens.compute_bitmask()), dtype=torch.int32)
            words[0] = allowed[: words.shape[1]]
        self._require_sound()
        is_whole = tokens.is_accepting()
        for token_id in stop_token_ids:
            word, bit = divmod(token_id, 32)
            flag = _to_signed(1 << bit)
            words[0, word] = words[0, word] | flag if is_whole else words[0, word] & ~flag

    def revise(self, token_id: int) -> int:
        """The token, if an end still fits after it, otherwise the next one of the end that is known."""
        if token_id in self._vocabulary.stop_token_ids or self._weigh(token_id) is not None:
            return token_id
        if self._end.token_ids:
            return self._end.token_ids[0]
        return min(self._vocabulary.stop_token_ids)

    def accept(self, token_id: int) -> None:
        """Raises InvalidRequest for a token that does not belong into the document, or after which no end fits."""
        if token_id in self._vocabulary.stop_token_ids:
            return
        end = self._weigh(token_id)
        text = self._vocabulary.bytes_of(token_id)
        self._require_sound()
        if end is None or not (self._tokens.consume_token(token_id) and self._text.consume_tokens(list(text))):
            raise InvalidRequest(f"token {token_id} does not fit the answer's grammar and its length", "answered")
        self._place = self._place.after(text)
        self._end, self._weighed = end, None
        self._num_left -= 1

    def _require_sound(self) -> None:
        """llguidance's limits show only afterwards."""
        if message := self._tokens.get_error() or self._text.get_error():
            reason = message.splitlines()[0]
            raise InvalidRequest(f"the JSON schema is too complex to follow: {reason}", "response_format")

    def _weigh(self, token_id: int) -> End | None:
        """The end of the document after this token; None if none was found that fits."""
        if self._weighed is None or self._weighed[0] != token_id:
            self._weighed = token_id, self._end_after(token_id)
        return self._weighed[1]

    def _end_after(self, token_id: int) -> End | None:
        end, text = self._end, self._vocabulary.bytes_of(token_id)
        if end.token_ids and token_id == end.token_ids[0]:  # as long as it was promised to be
            return End(end.text[len(text) :], end.token_ids[1:])
        place = self._place.after(text)
        # Asked before it is told: what it cannot take it would never get over.
        if not text or not place.is_sane or self._text.validate_tokens(list(text)) < len(text):
            return None
        self._text.consume_tokens(list(text))
        try:
            return self._search(place, end.text[len(text) :] if end.text.startswith(text) else end.text)
        finally:
            self._text.rollback(len(text))

    def _search(self, place: Place, text: bytes) -> End | None:
        """Cheapest first: the end that was known before, nearly always."""
        if self._closer.holds(text):
            return self._fit(text)  # where it is too long, the token opened nothing, and no other end will be shorter
        found = self._closer.close(place)
        return self._fit(found) or self._fit(self._closer.improve(place, found, MAX_SEARCH_BYTES))

    def _fit(self, text: bytes | None) -> End | None:
        token_ids = None if text is None else self._vocabulary.encode(text)
        if text is None or token_ids is None:
            return None
        end = End(text, token_ids)
        return end if end.num_tokens <= self._num_left - 1 else None


def _to_signed(flag: int) -> int:
    return flag - 2**32 if flag >> 31 else flag
