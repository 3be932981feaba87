"""Server-sent events out of timed blocks of bytes, as they came from a socket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """What one read gave. Reading stores only this: the client shares the cores with the server it measures."""

    time_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Event:
    time_s: float  # of the block that completed it
    name: str  # "" where the server names none
    data: str


def parse_events(blocks: Iterable[Block]) -> Iterator[Event]:
    """Comments and empty events are left out; what follows the last blank line is no event."""
    name, data = "", list[str]()
    for time_s, line in _lines(blocks):
        if not line:
            if data:
                yield Event(time_s, name, "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))
        elif field == "event":
            name = value.removeprefix(" ")


def _lines(blocks: Iterable[Block]) -> Iterator[tuple[float, str]]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block.data).split(b"\n")
        for line in whole:
            yield block.time_s, line.removesuffix(b"\r").decode()
