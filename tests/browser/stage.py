"""What the browser tests work with: a real server over fake models, a page in Chromium, and a connection to cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ingress.bench import FixedParts, serving
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request

from deployments.config import RetinaConfig, parse_config
from deployments.fakes import FakeGenerator
from deployments.images.stores.open import open_image_store
from deployments.ingress.app import create_app
from deployments.ingress.services import Services, build_services
from deployments.session_router.service import open_router
from deployments.types import Chunk, GenerateRequest, Generator, Json

MODELS = (
    {"name": "fake", "family": "fake", "prices": {"prompt": 1, "image": 2, "completion": 4}},
    {"name": "other", "family": "fake"},
)
SECRET = b"s" * 32


class Model:
    """A fake generator that a test may replace while the server runs; `says` makes it say something of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.generator: Generator = FakeGenerator(name)
        self.text: str | None = None

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async with contextlib.aclosing(self.generator.stream(request)) as chunks:
            async for chunk in chunks:
                if self.text is None:
                    yield chunk
                elif chunk.finish_reason is not None:  # the echo's words are left out, what it says of itself stays
                    yield replace(chunk, text=self.text, token_ids=(), logprobs=())

    async def statistics(self) -> Json:
        return await self.generator.statistics()


@dataclass(slots=True)
class Server:
    address: str
    services: Services
    models: Mapping[str, Model]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@contextlib.asynccontextmanager
async def open_server(folder: Path, **sections: Mapping[str, object]) -> AsyncIterator[Server]:
    config = _config(folder, sections)
    router, images = open_router(config), open_image_store(config.images, folder)
    models = {model.name: Model(model.name) for model in config.models}
    services = build_services(config, router, models, images, SECRET, FixedParts({"session_router": True}))
    try:
        async with serving(create_app(services)) as address:
            yield Server(address, services, models)
    finally:
        await router.close()


def _config(folder: Path, sections: Mapping[str, Mapping[str, object]]) -> RetinaConfig:
    defaults: dict[str, object] = {
        "images": {"store": "memory"},
        "session_router": {"store": "memory"},
        "ingress": {"streams": {"store": "memory"}},
    }
    return parse_config({"models": list(MODELS), "data_dir": str(folder), **defaults, **sections})


@dataclass  # without slots: playwright keeps an attribute of its own beside methods that listen
class Stage:
    """One reader's page."""

    server: Server
    context: BrowserContext
    page: Page
    address: str  # the server's, or that of what stands before it
    requests: list[str] = field(default_factory=list)  # addresses
    problems: list[str] = field(default_factory=list)  # what the browser's console complains of

    def by(self, element_id: str) -> Locator:
        return self.page.locator(f"#{element_id}")

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant .text")

    @property
    def questions(self) -> Locator:
        return self.page.locator("article.user .text")

    async def open(self, path: str = "/") -> None:
        """The page, with its models and its list of chats."""
        await self.page.goto(self.address + path)
        await self.by("model").wait_for()

    async def type(self, question: str) -> None:
        await self.by("question").fill(question)
        await self.by("question").press("Enter")

    async def ask(self, question: str) -> None:
        """Asks, and waits for the whole answer."""
        whole = self.page.locator("article.assistant button", has_text="Copy")
        number = await whole.count()
        await self.type(question)
        await self.whole(number + 1)

    async def whole(self, number: int) -> None:
        """Waits until so many answers are there, and shown as markup."""
        await self.page.locator("article.assistant button", has_text="Copy").nth(number - 1).wait_for()
        await self.page.locator("article[aria-busy]").first.wait_for(state="detached")

    async def choose(self, data: bytes, name: str = "photo.png", media_type: str = "image/png") -> None:
        await self.by("file").set_input_files({"name": name, "mimeType": media_type, "buffer": data})

    def watch(self) -> None:
        self.page.on("request", self._note_request)
        self.page.on("console", self._note_problem)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note_problem(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource"):  # the page says those
            self.problems.append(message.text)

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith(("blob:", "data:")):
            self.requests.append(request.url)


@contextlib.asynccontextmanager
async def open_page(server: Server, context: BrowserContext, address: str = "") -> AsyncIterator[Stage]:
    """In a context that tests share, which saves half a second each: what is stored is stored by server."""
    context.set_default_timeout(10_000)
    page = await context.new_page()
    try:
        stage = Stage(server, context, page, address or server.address)
        stage.watch()
        yield stage
    finally:
        await page.close()
        await context.set_offline(False)


@contextlib.asynccontextmanager
async def open_stage(server: Server, browser: Browser, **options: object) -> AsyncIterator[Stage]:
    """In a context of its own."""
    context = await browser.new_context(**options)  # type: ignore[arg-type]
    try:
        async with open_page(server, context) as stage:
            yield stage
    finally:
        await context.close()


class Cable:
    """Stands between the browser and the server, and can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.is_cut = False
        self.cut_every: int | None = None  # bytes that a connection brings from the server before it is closed
        self.num_cuts = 0

    def cut(self) -> None:
        """Break all connections, and every new one until `mend`."""
        self.is_cut = True
        for writer in tuple(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self.is_cut = False

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        pair = {writer, up_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pass(reader, up_writer), self._bring(up_reader, writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # a connection that was cut, by whichever side
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _bring(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As _pass, of what the server says."""
        num_brought = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.cut_every is not None and num_brought + len(data) > self.cut_every:
                    writer.write(data[: self.cut_every - num_brought])
                    await writer.drain()
                    self.num_cuts += 1
                    self.cut_every += 100  # or what is longer than that would never come through
                    break
                num_brought += len(data) if self.cut_every is not None else 0
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def open_cable(server: Server) -> AsyncIterator[tuple[Cable, str]]:
    """The cable, and the address at its other end."""
    cable = Cable(server.port)
    async with await asyncio.start_server(cable.connect, "127.0.0.1", 0) as listener:
        yield cable, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        cable.cut()
