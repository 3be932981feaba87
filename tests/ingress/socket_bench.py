"""A WebSocket client that speaks as the API says, over a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from ingress.bench import Bench, serving
from websockets.asyncio.client import ClientConnection, connect

Event = dict[str, Any]
PATIENCE_S = 20.0


class Client:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, type: str, **fields: object) -> None:
        await self.socket.send(json.dumps({"type": type, **fields}))

    async def next(self) -> Event:
        async with asyncio.timeout(PATIENCE_S):
            event: Event = json.loads(await self.socket.recv())
        return event

    async def until(self, *names: str) -> list[Event]:
        """Events up to the first with one of these names."""
        events = [await self.next()]
        while events[-1]["event"] not in names:
            events.append(await self.next())
        return events

    async def ask(self, message: str = "Hello", **fields: object) -> list[Event]:
        await self.send("ask", message=message, **fields)
        return await self.until("done", "error")

    async def error(self) -> dict[str, Any]:
        event = await self.next()
        assert event["event"] == "error", event
        error: dict[str, Any] = event["data"]["error"]
        assert set(error) == {"code", "message", "param", "request_id"}
        return error


@contextlib.asynccontextmanager
async def connected(address: str, **options: Any) -> AsyncIterator[Client]:
    async with connect(f"{address.replace('http', 'ws', 1)}/ws/chat", **options) as socket:
        yield Client(socket)


@contextlib.asynccontextmanager
async def client_of(bench: Bench, **options: Any) -> AsyncIterator[Client]:
    async with serving(bench.app) as address, connected(address, **options) as client:
        yield client


def text_of(events: list[Event]) -> str:
    return "".join(event["data"]["text"] for event in events if event["event"] == "chunk")
