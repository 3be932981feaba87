"""Finds which thing of a scene a question speaks of, and where in the text that is settled.

Training shows the model this link at the very word; from answers alone it takes far longer to tell two things apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from scenes import COLORS, PLACES, SHAPES, Scene, Thing

_PLACE = re.compile("|".join(sorted(PLACES, key=len, reverse=True)))
_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b")
_SHAPE = re.compile(rf"\b({'|'.join(SHAPES)})s?\b")


@dataclass(frozen=True, slots=True)
class Pointer:
    """`text[:end]` ends with the word that settles which thing is meant; None where the scene has no such thing."""

    end: int
    thing: Thing | None


def find_pointer(text: str, scene: Scene) -> Pointer | None:
    """Point from a question to the one thing that fits its words; None if it names nothing or more than one fits."""
    lowered = text.lower()
    place, color, shape = (pattern.search(lowered) for pattern in (_PLACE, _COLOR, _SHAPE))
    named = [match for match in (place, color, shape) if match]
    fitting = [
        thing
        for thing in scene.things
        if (not place or place[0] == thing.place)
        and (not color or color[1] == thing.color)
        and (not shape or shape[1] == thing.shape)
    ]
    if not named or len(fitting) > 1:
        return None
    return Pointer(max(match.end() for match in named), fitting[0] if fitting else None)
