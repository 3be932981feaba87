"""A replica that dies or is cut off from everybody, without leaving its process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Cable:
    """While it is cut, nothing that goes through it arrives, and nobody is told; joined again, all goes on."""

    joined: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.joined.set()

    def cut(self) -> None:
        self.joined.clear()

    def join(self) -> None:
        self.joined.set()


class Behind:
    """A part behind a cable: every call waits until the cable is whole. Calls under way when it is cut arrive."""

    def __init__(self, part: Any, cable: Cable) -> None:
        self._part = part
        self._cable = cable

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args: object, **named: object) -> object:
            await self._cable.joined.wait()
            return await found(*args, **named)

        return call
