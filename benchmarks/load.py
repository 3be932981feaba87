"""Puts load on a service that runs already, over HTTP, and says how it answered.

python -m benchmarks.load --url http://127.0.0.1:8000 --users 16
python -m benchmarks.load --url http://127.0.0.1:8080 --api openai --model NAME --scenario conversation
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.card import machine_card
from benchmarks.events import Block
from benchmarks.processes import ProcessTree, Usage
from benchmarks.report import Report, add_report_options
from benchmarks.speakers import BadAnswer, Conversation, OpenAIConversation, Question, RetinaConversation
from benchmarks.summary import Summary, summarize
from benchmarks.users import SCENARIOS, Load, LoadFailed, OpenTalk, Reply, run_load, warm_up

if TYPE_CHECKING:
    import aiohttp

Api = Literal["retina", "openai"]
ANSWER_WITHIN_S = 600
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Service:
    url: str  # without a path
    api: Api
    model: str | None  # None: Retina's default
    pid: int | None = None  # of the server's first process, if it is on this machine

    def open_conversation(self) -> Conversation:
        if self.api == "retina":
            return RetinaConversation(self.model)
        if self.model is None:
            raise ValueError("a service that speaks OpenAI's chat completions needs the name of a model")
        return OpenAIConversation(self.model)


@dataclass(frozen=True, slots=True)
class Measured:
    summary: Summary
    usage: Usage | None  # None: the server's processes are not known

    def to_row(self) -> dict[str, object]:
        used = dataclasses.asdict(self.usage) if self.usage is not None else {}
        return {**dataclasses.asdict(self.summary), **used}


def measure(service: Service, load: Load) -> Measured:
    """Warm up, run the load, and count what the server used meanwhile. Raises LoadFailed."""
    return asyncio.run(_measure(service, load))


async def _measure(service: Service, load: Load) -> Measured:
    tree = ProcessTree(service.pid) if service.pid is not None else None
    async with open_http(service) as open_talk:
        try:
            await warm_up(load, open_talk)
        except (BadAnswer, OSError) as error:
            raise LoadFailed(f"the warm-up of {service.url}: {type(error).__name__}: {error}") from error
        before = tree.moment() if tree is not None else None
        records = await run_load(load, open_talk)
        usage = tree.usage_since(before) if tree is not None and before is not None else None
    return Measured(summarize(records), usage)


@asynccontextmanager
async def open_http(service: Service) -> AsyncIterator[OpenTalk]:
    import aiohttp

    # A new connection for each request, as people come who do not know each other.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=READ_BYTES) as session:
        yield lambda: HttpTalk(session, service.url.rstrip("/"), service.open_conversation())


@dataclass(frozen=True, slots=True)
class HttpTalk:
    session: aiohttp.ClientSession
    url: str
    conversation: Conversation

    async def ask(self, question: Question) -> Reply:
        body = self.conversation.ask(question)
        sent_s = time.perf_counter()
        async with self.session.post(
            self.url + self.conversation.path, data=body.data, headers={"Content-Type": body.content_type}
        ) as response:
            if not response.ok:
                raise BadAnswer(f"HTTP {response.status}: {(await response.text())[:300]}")
            blocks = [Block(time.perf_counter(), data) async for data in response.content.iter_any()]
        end_s = time.perf_counter()
        return Reply(sent_s, end_s, self.conversation.read(question, blocks))


# ------------------------------------------------------------------------------------- the command


def main(words: list[str] | None = None) -> int:
    options = _parse(words)
    service = Service(options.url, options.api, options.model, options.pid)
    seed = options.seed or secrets.token_hex(4)
    load = Load(SCENARIOS[options.scenario], options.users, options.requests, seed, options.max_tokens)
    try:
        measured = measure(service, load)
    except LoadFailed as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    row = {"service": options.url, "scenario": options.scenario, "users": options.users, **measured.to_row()}
    Report("load", machine_card(), (row,), settings=vars(options) | {"seed": seed}).finish(options)
    return 0


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the service, without a path")
    parser.add_argument("--api", choices=("retina", "openai"), default="retina", help="what it speaks")
    parser.add_argument("--model", help="openai: needed; retina: its default model without")
    parser.add_argument("--pid", type=int, help="of the server's first process: its CPU time and memory are counted")
    about = "; ".join(f"{name}: {scenario.about}" for name, scenario in SCENARIOS.items())
    parser.add_argument("--scenario", choices=SCENARIOS, default="unique", help=about)
    parser.add_argument("--users", type=int, default=1, help="who ask at the same time")
    parser.add_argument("--requests", type=int, default=4, help="of each user; conversations count as one")
    parser.add_argument("--max-tokens", type=int, help="of an answer; without: 64, in conversations 32")
    parser.add_argument("--seed", help="of the pictures; without: new ones in each run")
    add_report_options(parser)
    options = parser.parse_args(words)
    if options.api == "openai" and options.model is None:
        parser.error("--api openai needs --model")
    return options


if __name__ == "__main__":
    sys.exit(main())
