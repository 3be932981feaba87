"""A small load on a service: users who ask at the same time, and what they waited for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from deployments.errors import RetinaError, SessionNotFound

if TYPE_CHECKING:
    from deployments.client.service_client import ServiceClient

PICTURE_SIDE_PX = 224
NUM_FIELDS = 8  # of random colour, along each side of a made picture


@dataclass(frozen=True, slots=True)
class Load:
    users: int
    requests: int  # of each user, one after the other
    question: str
    model: str | None
    max_new_tokens: int
    picture: bytes | None  # for everybody; None: a new one with each request


@dataclass(frozen=True, slots=True)
class Answered:
    first_text_s: float  # request sent to the first text
    whole_s: float  # request sent to the end
    num_tokens: int
    gaps_s: tuple[float, ...]  # between pieces of text


@dataclass(slots=True)
class Measured:
    load: Load
    answered: list[Answered] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)  # by code
    first_failure: str = ""
    wall_s: float = 0.0

    @property
    def num_failed(self) -> int:
        return self.failures.total()

    def figures(self) -> dict[str, object]:
        """Milliseconds of answers that came to their end; failures are counted beside them and never among them."""
        firsts = [one.first_text_s * 1000 for one in self.answered]
        wholes = [one.whole_s * 1000 for one in self.answered]
        gaps = [gap * 1000 for one in self.answered for gap in one.gaps_s]
        num_tokens = sum(one.num_tokens for one in self.answered)
        return {
            "users": self.load.users,
            "requests": len(self.answered) + self.num_failed,
            "failed": self.num_failed,
            "wall_s": round(self.wall_s, 3),
            "tokens": num_tokens,
            "tokens_per_s": round(num_tokens / self.wall_s, 1) if self.wall_s else None,
            "answers_per_s": round(len(self.answered) / self.wall_s, 2) if self.wall_s else None,
            "ttft_p50_ms": percentile(firsts, 50),
            "ttft_p95_ms": percentile(firsts, 95),
            "gap_p50_ms": percentile(gaps, 50),
            "gap_p95_ms": percentile(gaps, 95),
            "answer_p50_ms": percentile(wholes, 50),
            "answer_p95_ms": percentile(wholes, 95),
        }


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Between the two nearest values; None where there are none."""
    if len(values) < 2:
        return round(values[0], 1) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)


async def warm_up(client: ServiceClient, load: Load) -> None:
    """One question before anything is measured. Raises what the service answered."""
    async with _visit(client) as visit:
        await visit.ask(load)


async def run_load(client: ServiceClient, load: Load) -> AsyncGenerator[Measured, None]:
    """After each request, the same object; sessions and pictures are deleted at the end, outside the measured time."""
    measured = Measured(load)
    async with _visit(client) as visit:
        began_s = time.perf_counter()
        done: asyncio.Queue[Answered | Exception] = asyncio.Queue()
        users = [asyncio.create_task(_user(visit, load, done)) for _ in range(load.users)]
        try:
            for _ in range(load.users * load.requests):
                _note(measured, await done.get())
                measured.wall_s = time.perf_counter() - began_s
                yield measured
            await asyncio.gather(*users)
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)


async def _user(visit: _Visit, load: Load, done: asyncio.Queue[Answered | Exception]) -> None:
    for _ in range(load.requests):
        try:
            done.put_nowait(await visit.ask(load))
        except Exception as error:  # whoever counts tells failed requests from our own mistakes
            done.put_nowait(error)


def _note(measured: Measured, outcome: Answered | Exception) -> None:
    if isinstance(outcome, Answered):
        measured.answered.append(outcome)
        return
    if not isinstance(outcome, RetinaError):
        raise outcome
    measured.failures[outcome.code] += 1
    measured.first_failure = measured.first_failure or f"{outcome.code}: {outcome.message}"


@dataclass(slots=True)
class _Visit:
    """Remembers what it leaves behind."""

    client: ServiceClient
    sessions: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)

    async def ask(self, load: Load) -> Answered:
        """In a session of its own, without keeping the stream. The picture is uploaded before the clock starts."""
        from deployments.ingress.schemas import ChatReply, ChatRequest, ChunkEvent, StartEvent

        picture = load.picture if load.picture is not None else await asyncio.to_thread(make_picture)
        image = await self.client.add_image(picture)
        if load.picture is None:  # one that we did not make may be other people's, too: equal pictures have one id
            self.images.add(image.id)
        fields = {"message": load.question, "image_id": image.id, "max_new_tokens": load.max_new_tokens}
        asked = ChatRequest.model_validate(fields if load.model is None else {**fields, "model": load.model})
        times_s: list[float] = []
        sent_s = time.perf_counter()
        async with contextlib.aclosing(self.client.stream_chat_once(asked)) as events:
            async for event in events:
                if isinstance(event, StartEvent):
                    self.sessions.add(event.session_id)
                elif isinstance(event, ChunkEvent):
                    times_s.append(time.perf_counter())
                elif isinstance(event, ChatReply):
                    break
        end_s = time.perf_counter()
        assert isinstance(event, ChatReply), "a stream ends with the reply or raises"
        gaps_s = tuple(after - before for before, after in itertools.pairwise(times_s))
        first_s = times_s[0] if times_s else end_s  # an answer without text is known at its end
        return Answered(first_s - sent_s, end_s - sent_s, event.usage.completion_tokens, gaps_s)

    async def clean_up(self) -> None:
        """Failed turns leave no session. Raises ServerUnreachable, and what the service answered."""
        for session in self.sessions:
            with contextlib.suppress(SessionNotFound):
                await self.client.delete_session(session)
        for image in self.images:
            await self.client.delete_image(image)


@contextlib.asynccontextmanager
async def _visit(client: ServiceClient) -> AsyncGenerator[_Visit, None]:
    visit = _Visit(client)
    try:
        yield visit
    finally:
        await visit.clean_up()


def make_picture() -> bytes:
    """Of random colours, so that no service has seen it before. Blocks."""
    from PIL import Image

    file = BytesIO()
    fields = Image.frombytes("RGB", (NUM_FIELDS, NUM_FIELDS), secrets.token_bytes(3 * NUM_FIELDS**2))
    fields.resize((PICTURE_SIDE_PX, PICTURE_SIDE_PX), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
