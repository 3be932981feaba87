"""Finds which thing of a scene a question speaks of, and where in the text that is settled.

Training shows the model this link at the very word; from answers alone it takes far longer to tell two things apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import japanese_wordings as japanese
from scenes import COLORS, PLACES, SHAPES, Scene, Thing


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A language's words for places, colors and shapes; each pattern's match is a key of its table."""

    place: dict[str, str]
    color: dict[str, str]
    shape: dict[str, str]
    is_spaced: bool  # words stand alone, so that no part of another word counts

    def find(self, text: str) -> tuple[re.Match[str] | None, ...]:
        """Where the text names a place, a color and a shape first."""
        return tuple(self._first(table, text) for table in (self.place, self.color, self.shape))

    def _first(self, table: dict[str, str], text: str) -> re.Match[str] | None:
        names = "|".join(sorted(table, key=len, reverse=True))
        return re.search(rf"\b({names})(?=s?\b)" if self.is_spaced else f"({names})", text)


def _japanese_colors() -> dict[str, str]:
    colors = {name: words for name, words in japanese.COLORS.items() if name in COLORS}
    return {word.removesuffix("の"): name for name, words in colors.items() for word in words} | {
        word.removesuffix("の"): name for name, word in japanese.OTHER_COLORS.items()
    }


def _japanese_shapes() -> dict[str, str]:
    others = {word: name for name, words in japanese.OTHER_SHAPES.items() for word in words}
    return {word: name for name, word in japanese.SHAPES.items()} | others


ENGLISH = Lexicon({p: p for p in PLACES}, {c: c for c in COLORS}, {s: s for s in SHAPES}, is_spaced=True)
JAPANESE = Lexicon(
    {word: place for place, word in japanese.PLACES.items()} | {"真ん中": "in the center"},
    _japanese_colors(),
    _japanese_shapes(),
    is_spaced=False,
)


@dataclass(frozen=True, slots=True)
class Pointer:
    """`text[:end]` ends with the word that settles which thing is meant; None where the scene has no such thing."""

    end: int
    thing: Thing | None


def find_pointer(text: str, scene: Scene) -> Pointer | None:
    """Point from a question to the one thing that fits its words; None if it names nothing or more than one fits."""
    lexicon = ENGLISH if text.isascii() else JAPANESE
    place, color, shape = lexicon.find(text.lower())
    named = [match for match in (place, color, shape) if match]
    fitting = [
        thing
        for thing in scene.things
        if (not place or lexicon.place[place[1]] == thing.place)
        and (not color or lexicon.color[color[1]] == thing.color)
        and (not shape or lexicon.shape[shape[1]] == thing.shape)
    ]
    if not named or len(fitting) > 1:
        return None
    return Pointer(max(match.end() for match in named), fitting[0] if fitting else None)
