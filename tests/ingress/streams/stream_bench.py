"""What the tests of kept streams work with: replicas over one store and one router, and readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ingress.bench import turn
from ingress.streams.faults import Cable

from deployments.config import RetinaConfig
from deployments.fakes import FakeGenerator
from deployments.ingress.streams.ownership import Pace
from deployments.ingress.streams.service import Streams
from deployments.ingress.streams.stores import StreamStore
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turn_types import KeptEvent, TurnChunk, TurnFailed, TurnFinished, TurnInput
from deployments.ingress.turns import Turns
from deployments.session_router.service import Router
from deployments.types import Generator, ImageStore

QUICK = Pace(beat_s=0.01, stale_s=0.1, sweep_s=0.02, first_look_s=0.001, longest_look_s=0.005)
ANSWER = 'You asked: "Hello".'
WORDS = ["You", " asked:", ' "Hello".']


@dataclass(slots=True)
class Clock:
    """Unix time plus what a test adds."""

    ahead_s: float = 0

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead_s


@dataclass(slots=True)
class Replica:
    streams: Streams
    turns: Turns
    store: StreamStore

    async def begin(self, asked: TurnInput | None = None, **how: bool) -> str:
        return await self.streams.begin(asked or turn(), **how)

    async def follow(self, stream_id: str, after: int = -1) -> list[tuple[int, KeptEvent]]:
        return [event async for event in self.streams.follow(PUBLIC_TENANT, stream_id, after)]

    async def stop(self, stream_id: str) -> None:
        await self.streams.stop(PUBLIC_TENANT, stream_id)

    def counts(self) -> Mapping[str, float]:
        found = self.turns.metrics.snapshot()
        return {
            name.removeprefix("ingress_streams."): number
            for name, number in found.items()
            if name.startswith("ingress_streams.")
        }


def text_of(events: list[tuple[int, KeptEvent]]) -> str:
    return "".join(event.text for _, event in events if isinstance(event, TurnChunk))


def finished(events: list[tuple[int, KeptEvent]]) -> TurnFinished:
    last = events[-1][1]
    assert isinstance(last, TurnFinished), last
    return last


def failed(events: list[tuple[int, KeptEvent]]) -> TurnFailed:
    last = events[-1][1]
    assert isinstance(last, TurnFailed), last
    return last


@dataclass(slots=True)
class World:
    """What replicas share."""

    config: RetinaConfig
    router: Router
    images: ImageStore
    store: StreamStore
    clock: Clock = field(default_factory=Clock)
    replicas: list[Replica] = field(default_factory=list)
    cables: list[Cable] = field(default_factory=list)

    def cable(self) -> Cable:
        """It is joined again at the end of the test."""
        self.cables.append(Cable())
        return self.cables[-1]

    def replica(
        self,
        generator: Generator | None = None,
        wrap_store: Callable[[StreamStore], StreamStore] | None = None,
        wrap_router: Callable[[Router], Router] | None = None,
        pace: Pace = QUICK,
    ) -> Replica:
        router = wrap_router(self.router) if wrap_router else self.router
        turns = Turns(router, {"fake": generator or FakeGenerator()}, self.images, self.config)
        store = wrap_store(self.store) if wrap_store else self.store
        replica = Replica(Streams(turns, self.config, store, self.clock, pace), turns, store)
        self.replicas.append(replica)
        return replica
