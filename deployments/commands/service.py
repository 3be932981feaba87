"""Who answers: a server elsewhere, or the graph of a config in this process. Commands are written once for both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import typer

from deployments.commands.terminal import DEFAULT_CONFIG, SERVER_VARIABLE, errors
from deployments.config import RetinaConfig, read_config
from deployments.errors import ConfigError, RetinaError, UnknownModel
from deployments.families import FAMILIES

if TYPE_CHECKING:
    from deployments.client.service_client import ServiceClient
    from deployments.types import Skill

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Narrow = Callable[[RetinaConfig], RetinaConfig]  # to the models that are needed; the whole config without


@dataclass(frozen=True, slots=True)
class ListedModel:
    name: str
    skills: tuple[Skill, ...]
    is_default: bool


class Service(Protocol):
    @property
    def client(self) -> ServiceClient:
        """Changes with `use`: ask for it anew."""
        ...

    async def models(self) -> tuple[ListedModel, ...]:
        """All that may be asked, also those that are not loaded."""
        ...

    async def use(self, model: str) -> None:
        """Be able to ask this model. Raises UnknownModel, and in this process StartupError."""
        ...


@dataclass(frozen=True, slots=True)
class Where:
    server: str | None  # address; None: in this process
    config_path: Path = DEFAULT_CONFIG

    @classmethod
    def of(cls, server: str | None, config_path: Path | None) -> Where:
        """By the options of a command. Raises BadParameter."""
        if server is not None and config_path is not None:
            raise typer.BadParameter(
                f"{config_path} is for models in this process, and {server} is a service elsewhere (--server, or "
                f"{SERVER_VARIABLE}); choose one of them",
                param_hint="--config",
            )
        return cls(server and check_address(server), config_path or DEFAULT_CONFIG)

    def config(self) -> RetinaConfig:
        """Of this process. Raises ConfigError."""
        if not self.config_path.exists():
            raise ConfigError(
                f"{self.config_path}: No such file or directory; --config names another, --server a service that runs"
            )
        return read_config(self.config_path)


@contextlib.asynccontextmanager
async def open_service(where: Where, narrow: Narrow | None = None) -> AsyncIterator[Service]:
    """Raises ConfigError and whatever loading raises; a server is not asked before it is needed."""
    if where.server is not None:
        async with _open_server(where.server) as service:
            yield service
        return
    async with contextlib.AsyncExitStack() as stack:
        whole = where.config()
        local = LocalService(whole, stack)
        await local.load(narrow(whole) if narrow is not None else whole)
        yield local


def only(model: str | None, skill: Skill | None = None) -> Narrow:
    """The one model that a request will go to. Raises UnknownModel, and InvalidRequest for a missing skill."""

    def narrow(config: RetinaConfig) -> RetinaConfig:
        from deployments.ingress.model_choice import choose_model

        if skill is not None:
            return config.with_model(choose_model(config, skill, model))
        require_model(names_of(config), model or config.first_model)
        return config.with_model(model or config.first_model)

    return narrow


def with_models(config: RetinaConfig, names: Collection[str]) -> RetinaConfig:
    """These alone, in the config's order; its default stays if it is among them."""
    models = tuple(model for model in config.models if model.name in names)
    default = config.first_model if config.first_model in names else None
    return config.model_copy(update={"models": models, "default_model": default})


def names_of(config: RetinaConfig) -> list[str]:
    return [model.name for model in config.models]


def require_model(names: Sequence[str], model: str) -> None:
    """Raises UnknownModel."""
    if model not in names:
        raise UnknownModel(f"unknown model {model!r}; choose one of: {', '.join(names)}", "model")


# ------------------------------------------------------------------------------------- elsewhere


def check_address(server: str) -> str:
    """Without a slash at its end. Raises BadParameter."""
    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise typer.BadParameter(f"{server!r} is no address such as http://127.0.0.1:8000", param_hint="--server")
    return server.rstrip("/")


def is_loopback(server: str) -> bool:
    return urlsplit(server).hostname in LOOPBACK


@contextlib.asynccontextmanager
async def _open_server(server: str) -> AsyncIterator[ServerService]:
    import httpx

    from deployments.client.service_client import ServiceClient

    # Answers may take long; how long is the service's to say. Proxies of the environment are for other machines.
    timeout = httpx.Timeout(600, connect=10)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server, timeout=timeout, limits=limits, trust_env=not is_loopback(server)
    ) as http:
        yield ServerService(ServiceClient(http))


@dataclass(frozen=True, slots=True)
class ServerService:
    client: ServiceClient

    async def models(self) -> tuple[ListedModel, ...]:
        listed = (await self.client.models()).data
        return tuple(ListedModel(model.id, tuple(model.skills), model.is_default) for model in listed)

    async def use(self, model: str) -> None:
        require_model([one.name for one in await self.models()], model)


# ------------------------------------------------------------------------------------- here


class LocalService:
    """The graph of a config in this process, with the models that are needed."""

    def __init__(self, whole: RetinaConfig, stack: contextlib.AsyncExitStack) -> None:
        self._whole = whole
        self._loaded = whole
        self._stack = stack  # of who opened this; ours is in it
        self._graph = contextlib.AsyncExitStack()
        self._client: ServiceClient | None = None

    @property
    def client(self) -> ServiceClient:
        assert self._client is not None
        return self._client

    async def models(self) -> tuple[ListedModel, ...]:
        default = self._whole.first_model
        return tuple(
            ListedModel(model.name, FAMILIES[model.family].skills, model.name == default)
            for model in self._whole.models
        )

    async def use(self, model: str) -> None:
        """Loads it in place of what is loaded; sessions and pictures stay, being on disk."""
        require_model(names_of(self._whole), model)
        if any(one.name == model for one in self._loaded.models):
            return
        before = self._loaded
        try:
            await self.load(self._whole.with_model(model))
        except RetinaError:
            await self.load(before)
            raise

    async def load(self, config: RetinaConfig) -> None:
        """In place of the graph that is there."""
        import httpx

        from deployments.client.app_transport import AppTransport
        from deployments.client.service_client import ServiceClient
        from deployments.local import open_graph

        await self._graph.aclose()
        self._graph = contextlib.AsyncExitStack()
        self._stack.push_async_callback(self._graph.aclose)
        names = ", ".join(model.name for model in config.models)
        await silence_weight_bars(config)
        with errors.status(f"loading {names}"):
            graph = await self._graph.enter_async_context(open_graph(config))
        self._graph.push_async_callback(graph.services.drain)
        http = httpx.AsyncClient(transport=AppTransport(graph.app()), base_url="http://in-process", timeout=None)
        self._client = ServiceClient(await self._graph.enter_async_context(http))
        self._loaded = config


async def silence_weight_bars(config: RetinaConfig) -> None:
    """Of models that have weights; the others need no transformers."""
    if any(FAMILIES[model.family].module for model in config.models):
        await asyncio.to_thread(_silence_weight_bars)


def _silence_weight_bars() -> None:
    """Those of reading weights flicker for an instant each; those of downloads stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    shows_downloads = not are_progress_bars_disabled()
    disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
