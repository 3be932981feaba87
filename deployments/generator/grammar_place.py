"""Where in a JSON text one stands: in a string, how deep, how far into a number. Knows no grammar and no tokens."""

from __future__ import annotations

from dataclasses import dataclass

QUOTE, BACKSLASH = ord('"'), ord("\\")
OPENERS, CLOSERS = frozenset(b"[{"), frozenset(b"]}")
DIGITS, NUMBER_BYTES, EXPONENT = frozenset(b"0123456789"), frozenset(b"0123456789+-.eE"), frozenset(b"eE")
# What readers take: Python's json gives up at about 1000 levels, doubles have 15 digits and exponents below 308, and
# longer whole numbers are nobody's answer, but a small model's rambling.
MAX_DEPTH = 64
MAX_WHOLE_DIGITS, MAX_DIGITS, MAX_EXPONENT_DIGITS = 40, 15, 2


@dataclass(frozen=True, slots=True)
class Place:
    """After a text that is the beginning of JSON."""

    in_string: bool = False
    is_escaped: bool = False  # the next byte belongs to an escape
    depth: int = 0
    num_digits: int = 0  # of the number that one stands in, its exponent's left out
    is_whole: bool = True  # that number has no fraction and no exponent so far
    num_exponent_digits: int | None = None  # None: no exponent
    last: int = 0  # byte

    @property
    def is_sane(self) -> bool:
        """Whether readers will take what stands here."""
        most = MAX_WHOLE_DIGITS if self.is_whole else MAX_DIGITS
        return (
            self.depth <= MAX_DEPTH
            and self.num_digits <= most
            and (self.num_exponent_digits or 0) <= MAX_EXPONENT_DIGITS
        )

    @property
    def in_number(self) -> bool:
        return not self.in_string and self.last in NUMBER_BYTES

    def after(self, text: bytes) -> Place:
        """Not looked at again: a place that is not sane on the way may be so at the end."""
        place = self
        for byte in text:
            place = place._step(byte)
        return place

    def _step(self, byte: int) -> Place:
        if self.in_string:
            escapes = byte == BACKSLASH and not self.is_escaped
            ends = byte == QUOTE and not self.is_escaped
            return Place(in_string=not ends, is_escaped=escapes, depth=self.depth, last=byte)
        if byte in NUMBER_BYTES:
            return self._step_number(byte)
        depth = self.depth + (byte in OPENERS) - (byte in CLOSERS)
        return Place(in_string=byte == QUOTE, depth=depth, last=byte)

    def _step_number(self, byte: int) -> Place:
        # The letters of true, false and null have an e among them: a number begins with a digit or a minus.
        if not self.num_digits and byte not in DIGITS:
            return Place(depth=self.depth, last=byte)
        exponent = self.num_exponent_digits
        if exponent is not None:
            exponent += byte in DIGITS
        elif byte in EXPONENT:
            exponent = 0
        return Place(
            depth=self.depth,
            num_digits=self.num_digits + (byte in DIGITS and exponent is None),
            is_whole=self.is_whole and byte in DIGITS,
            num_exponent_digits=exponent,
            last=byte,
        )
