"""What the tests of the ingress work with: the app over real and fake parts, a real server, pictures, events, turns."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image

from deployments.config import RetinaConfig
from deployments.errors import SessionNotFound
from deployments.ingress.services import Services
from deployments.ingress.task_types import TaskEvent, TaskInput
from deployments.ingress.tasks import Tasks
from deployments.ingress.tenants import PUBLIC_TENANT
from deployments.ingress.turns import TurnEvent, TurnInput, Turns
from deployments.session_router.service import Router
from deployments.types import Chunk, GenerateRequest, ImageRef, ImageStore, Json, Task


@dataclass(slots=True)
class FixedParts:
    """Introspection with answers that a test sets."""

    states: dict[str, bool | str]
    failure: Exception | None = None  # of cache()

    async def engines(self) -> dict[str, Json]:
        return {"fake": {"running": 0}}

    async def cache(self) -> Json:
        if self.failure is not None:
            raise self.failure
        return {"hits": 3}

    async def router(self) -> Json:
        return {"sessions": 0}

    async def ready(self) -> dict[str, bool | str]:
        return self.states


@dataclass(slots=True)
class ScriptedGenerator:
    """Streams these chunks and then ends, whatever is asked."""

    chunks: tuple[Chunk, ...]
    requests: list[GenerateRequest] = field(default_factory=list)
    num_ended: int = 0  # streams that came to their own end

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        for chunk in self.chunks:
            yield chunk
        self.num_ended += 1

    async def statistics(self) -> Json:
        return {}


@dataclass(slots=True)
class Bench:
    config: RetinaConfig
    router: Router
    images: ImageStore
    turns: Turns
    tasks: Tasks
    parts: FixedParts
    app: FastAPI
    client: httpx.AsyncClient  # buffers whole replies; for anything about time or leaving use `serving`
    services: Services

    async def ask(self, message: str = "Hello", **fields: object) -> httpx.Response:
        return await self.client.post("/chat", json={"message": message, **fields})

    async def history(self, session_id: str) -> list[dict[str, object]]:
        reply = await self.client.get(f"/chat/history/{session_id}")
        return reply.json()["history"] if reply.status_code == 200 else []


BuildBench = Callable[..., Bench]  # generator, wrap_router, metrics, and sections of the config by name


@contextlib.asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The address of a real server for the app."""
    # asyncio turns Nagle's algorithm off where it is told that a socket speaks TCP; replies wait 40 ms otherwise.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


def picture(format: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("P", "L") else "red").save(file, format)
    return file.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


async def post_form(
    bench: Bench, fields: dict[str, object], image: bytes | None = None, path: str = "/chat"
) -> httpx.Response:
    """multipart/form-data, which httpx makes of `files` only."""
    parts = [(name, (None, str(value))) for name, value in fields.items()]
    if image is not None:
        parts.append(("image", ("photo.bin", image)))  # type: ignore[arg-type]
    return await bench.client.post(path, files=parts)


@contextlib.asynccontextmanager
async def asking(address: str, path: str = "/chat", **fields: object) -> AsyncIterator[asyncio.StreamReader]:
    """A raw client that closes its socket at the end of the block."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = httpx.Request("POST", address, json=fields).content
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


def parse_events(body: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Names and bodies; asserts that ids run from 0."""
    for index, block in enumerate(body.strip().split("\n\n")):
        name, data, number = block.split("\n")
        assert number == f"id: {index}"
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def error_of(reply: httpx.Response, status: int, code: str) -> dict[str, object]:
    """The error's body; asserts the shape that all errors have."""
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["code"] == code, error
    assert error["request_id"] == reply.headers["x-request-id"]
    assert len(error["message"]) < 1000
    return error


def turn(text: str = "Hello", session_id: str | None = "s", **fields: object) -> TurnInput:
    return TurnInput("r1", PUBLIC_TENANT, text, session_id, **fields)  # type: ignore[arg-type]


async def collect(turns: Turns, asked: TurnInput) -> list[TurnEvent]:
    return [event async for event in turns.stream(asked)]


def task(asked: Task, image: ImageRef | None = None, **fields: object) -> TaskInput:
    return TaskInput("r1", PUBLIC_TENANT, asked, image, **fields)  # type: ignore[arg-type]


async def collect_task(tasks: Tasks, asked: TaskInput) -> list[TaskEvent]:
    return [event async for event in tasks.stream(asked)]


async def stored(bench: Bench) -> int:
    try:
        return len(await bench.router.history(PUBLIC_TENANT, "s"))
    except SessionNotFound:
        return 0


async def open_turns(bench: Bench) -> object:
    return (await bench.router.statistics())["open_turns"]
