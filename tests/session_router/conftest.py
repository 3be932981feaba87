"""What the session router's tests share: a clock that stands still, stores of every kind, routers over them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.config import RetinaConfig, parse_config
from deployments.record_types import Record
from deployments.session_router.service import Router, open_router
from deployments.session_router.stores import SessionStore
from deployments.session_router.stores.disk import DiskSessionStore
from deployments.session_router.stores.memory import MemorySessionStore
from deployments.types import ImageRef, Message, Turn, TurnOutcome, TurnRequest, Usage

# Every store joins the contract by standing here: kind -> open it for a folder of its own.
STORES: dict[str, Callable[[Path], SessionStore]] = {
    "memory": lambda folder: MemorySessionStore(),
    "disk": DiskSessionStore,
}
SHARED_STORES = [kind for kind in STORES if kind != "memory"]


@dataclass
class StandingClock:
    now_s: float = 1_735_732_800.0  # 2025-01-01T12:00:00.000Z

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(params=list(STORES))
def store_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def open_store() -> Callable[[str, Path], SessionStore]:
    return lambda kind, folder: STORES[kind](folder)


RouterOpener = Callable[..., Router]


@pytest.fixture
async def open_a_router(tmp_path: Path, clock: StandingClock) -> AsyncIterator[RouterOpener]:
    """open_a_router(store=…, models=…, any key of the session_router section) -> Router on the test's one folder."""
    routers: list[Router] = []

    def open_it(store: str = "memory", models: tuple[str, ...] = ("alpha", "beta"), **section: object) -> Router:
        router = open_router(make_config(tmp_path, store, models, **section), clock)
        routers.append(router)
        return router

    yield open_it
    for router in routers:
        await router.close()


def make_config(folder: Path, store: str, models: tuple[str, ...], **section: object) -> RetinaConfig:
    return parse_config(
        {
            "models": [{"name": name, "family": "fake"} for name in models],
            "data_dir": str(folder),
            "session_router": {"store": store, "lease_wait_s": 0, **section},
        }
    )


@pytest.fixture
def router(open_a_router: RouterOpener, store_kind: str) -> Router:
    return open_a_router(store_kind)


@dataclass(frozen=True)
class Client:
    """Speaks to a router as the ingress does."""

    router: Router
    tenant: str = "tenant"

    async def open(self, session_id: str | None, text: str = "hello", **fields: object) -> Turn:
        return await self.router.open_turn(TurnRequest("request", self.tenant, session_id, text, **fields))

    async def ask(self, session_id: str | None, *messages: Message, **fields: object) -> Turn:
        """Opens a turn of several messages."""
        return await self.router.open_turn(TurnRequest("request", self.tenant, session_id, input=messages, **fields))

    async def close(self, turn: Turn, answer: str | None = "fine", *records: Record) -> int:
        return await self.router.close_turn(TurnOutcome(turn, answer, Usage(3, 2, 1, 1), records))

    async def say(self, session_id: str | None, text: str = "hello", answer: str = "fine", **fields: object) -> int:
        return await self.close(await self.open(session_id, text, **fields), answer)

    async def texts(self, session_id: str) -> list[str]:
        return [message.text for message in await self.router.history(self.tenant, session_id)]

    async def turns(self, outcome: str) -> float:
        return (await self.router.statistics())["metrics"].get(f"session_router_turns.{outcome}", 0)


@pytest.fixture
def client() -> type[Client]:
    return Client


@pytest.fixture
def picture() -> Callable[[str], ImageRef]:
    return lambda name: ImageRef(name * 64, 4, 3, 100, "image/png")


@pytest.fixture
def waiting() -> Callable[[Router, int], object]:
    async def until(router: Router, number: int) -> None:
        """Returns when that many turns stand in line."""
        async with asyncio.timeout(10):
            while (await router.statistics())["waiting_turns"] != number:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0)

    return until


@pytest.fixture(params=SHARED_STORES)
def shared_kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Runs code in a fresh interpreter; returns what it printed."""
    root = Path(__file__).parents[2]

    def run(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    return run
