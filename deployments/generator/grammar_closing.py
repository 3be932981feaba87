"""Searches short ends of an unfinished document, byte by byte. Knows no tokens and no model.

A grammar over single bytes answers in less than a microsecond which bytes may come next. What is found is an end for
certain; that it is the shortest one is likely only, since schemas hide what a choice costs later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from deployments.generator.grammar_place import Place
from deployments.generator.grammar_vocabulary import BYTE_STOP

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_END_BYTES = 32_768
WIDE_STEP = 64  # bytes, after which a string gets one of the longer characters
MAX_TRIES = 24  # of what else may come at one place, when a shorter end is searched

STOP = 1 << BYTE_STOP


def _bits(some: Iterable[int]) -> int:
    return sum(1 << byte for byte in set(some))


ANY = _bits(range(0x100))
QUOTE, SPACES, DIGITS, OPENERS, CLOSERS = (_bits(some) for some in (b'"', b" \t\r\n", b"0123456789", b"[{", b"]}"))
UPPER, LOWER = _bits(range(ord("A"), ord("Z") + 1)), _bits(range(ord("a"), ord("z") + 1))  # dates have T and Z
SIGNS = _bits(b"@.:/-_ +")
# What leads out of a string, a number or a recursion is not known: of these each is taken in turn, so that all loops of
# a pattern are left some time.
ASCII = _bits(range(0x80))
IN_STRING = (UPPER, LOWER, DIGITS, SIGNS, ASCII & ~_bits(b"\\"), ASCII, ANY)
IN_NUMBER = (DIGITS, ANY)
# What goes on with what must come, then short values, then what opens more.
OUTSIDE = (_bits(b",:"), _bits(b"0"), QUOTE, _bits(b"n"), _bits(b"t"), _bits(b"f"), DIGITS, _bits(b"-"))
OPENING = (OPENERS, ANY)
# What is worth a try where nearly everything may come.
TRIED_FIRST = (SIGNS, _bits(b"0A,"), ANY & ~ASCII, ANY & ~SPACES)


class Closer:
    """Finds ends of what a byte matcher was told so far, and leaves it as it was."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._num_looked = 0  # bytes of attempts

    def close(self, place: Place) -> bytes | None:
        """The bytes of an end that is reached by always taking what seems the shortest; None if none was found."""
        return self._roll(b"", place)

    def improve(self, place: Place, end: bytes | None, max_bytes: int) -> bytes | None:
        """The shortest of `end` and of those that differ from it by one choice after the other; looks at about
        `max_bytes`.
        """
        stop_at, best, done = self._num_looked + max_bytes, end, 0
        try:
            while self._num_looked < stop_at and (best is None or done < len(best)):
                best = self._try_others(place, best, done, stop_at)
                if best is None:
                    break
                self._matcher.consume_token(best[done])
                place = place.after(best[done : done + 1])
                done += 1
        finally:
            self._undo(done)
        return best

    def holds(self, end: bytes) -> bool:
        """Whether these bytes end the document."""
        if not end:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([*end, BYTE_STOP]) == len(end) + 1)

    def _try_others(self, place: Place, best: bytes | None, done: int, stop_at: int) -> bytes | None:
        """The best end, where `done` bytes of it were consumed and the next one may be another."""
        for choice in self._others(place, None if best is None else best[done]):
            found = self._roll(bytes([choice]), place)
            if found is not None and (best is None or done + len(found) < len(best)):
                best = (best or b"")[:done] + found
            if self._num_looked >= stop_at:
                break
        return best

    def _others(self, place: Place, taken: int | None) -> Iterator[int]:
        """What else may come here and may be worth a try; nothing where something ended."""
        allowed = self._allowed()
        used = 0 if taken is None else 1 << taken
        ends = QUOTE if place.in_string else CLOSERS
        if allowed & STOP or used & ends:
            return
        allowed &= ~used
        for _ in range(MAX_TRIES):
            choice = _first(allowed, TRIED_FIRST)
            if choice is None:
                return
            yield choice
            allowed &= ~(1 << choice)

    def _roll(self, first: bytes, place: Place) -> bytes | None:
        """The end that begins with `first`; None if there was none."""
        end, fresh, following = bytearray(), ANY, first
        try:
            while len(end) < MAX_END_BYTES:
                if not following and self._matcher.is_accepting():
                    return bytes(end)
                following = following or self._matcher.compute_ff_bytes()
                if not following:
                    allowed = self._allowed()
                    byte = _choose(place, allowed, fresh, is_wide=len(end) % WIDE_STEP == WIDE_STEP - 1)
                    if byte is None:
                        return None
                    fresh = (fresh if fresh >> byte & 1 else ANY) & ~(1 << byte)
                    following = bytes([byte])
                if not self._matcher.consume_tokens(list(following)):
                    return None
                end += following
                place, following = place.after(following), b""
            return None
        finally:
            self._num_looked += len(end) + 1
            self._undo(len(end))

    def _allowed(self) -> int:
        return int.from_bytes(self._matcher.compute_bitmask(), "little")

    def _undo(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)


def _choose(place: Place, allowed: int, fresh: int, *, is_wide: bool) -> int | None:
    """The byte that seems to lead to an end by the shortest way; `fresh` are those that were not taken lately."""
    if place.in_string:
        if allowed & QUOTE and not place.is_escaped:
            return ord('"')
        # Longer characters take more tokens; but one of them may be the only way out.
        allowed = allowed & (~ASCII if is_wide else ASCII) or allowed
        return _first(allowed & fresh or allowed, IN_STRING)
    allowed = allowed & ~SPACES or allowed
    byte = _first(allowed, (CLOSERS, *OUTSIDE[:1]))
    if byte is None and not place.in_number:
        byte = _first(allowed, OUTSIDE)
    return byte or _first(allowed & fresh or allowed, IN_NUMBER if place.in_number else OPENING)


def _first(allowed: int, classes: Iterable[int]) -> int | None:
    """The least byte of the first of the classes of which any is allowed; 0, which no JSON has, never."""
    for some in classes:
        if both := allowed & some & ~1:
            return (both & -both).bit_length() - 1
    return None
