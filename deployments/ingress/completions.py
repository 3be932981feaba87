"""The route of one conversation that a client holds itself: a model, the whole prompt, no session. Knows no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deployments.config import RetinaConfig
from deployments.errors import DeadlineExceeded, InvalidRequest, RetinaError, UnknownModel
from deployments.images.secret import tenant_secret
from deployments.ingress.answer import Answer, ending_of, open_answer
from deployments.ingress.completion_types import (
    CompletionChunk,
    CompletionEvent,
    CompletionFinished,
    CompletionInput,
    CompletionStarted,
)
from deployments.ingress.deadline import Deadline
from deployments.ingress.error_replies import shorten
from deployments.ingress.merging import merge
from deployments.ingress.unattended import Unattended
from deployments.metrics import Metrics
from deployments.types import Chunk, GenerateRequest, Generator, Json, Message, SamplingParams, TokenLogprob

__all__ = [
    "CompletionChunk",
    "CompletionEvent",
    "CompletionFinished",
    "CompletionInput",
    "CompletionStarted",
    "Completions",
    "affinity_of",
    "choose_conversation_model",
]

NUM_SEEDS = 2**63


@dataclass(slots=True)
class _Choice:
    """One of the answers under way."""

    index: int
    answer: Answer
    has_logprobs: bool
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    async def stream(self) -> AsyncGenerator[CompletionChunk | CompletionFinished, None]:
        while not self.answer.is_whole:
            chunk = await self.answer.next_chunk()
            self.texts.append(chunk.text)
            self.logprobs.extend(chunk.logprobs)
            if chunk.text or chunk.logprobs:
                yield CompletionChunk(chunk.text, chunk.logprobs, self.index)
        yield self._finish(chunk)

    def _finish(self, last: Chunk) -> CompletionFinished:
        ending = ending_of(last)
        logprobs = tuple(self.logprobs) if self.has_logprobs else None
        return CompletionFinished(
            self.index, "".join(self.texts), ending.finish_reason, ending.usage, ending.timings, logprobs
        )


@dataclass(slots=True)
class _Running:
    """A completion under way."""

    asked: CompletionInput
    deadline: Deadline
    choices: list[_Choice] = field(default_factory=list)
    outcome: str = ""  # the finish reason, where they differ `length`; or what went wrong

    @property
    def stage(self) -> str:
        """Where a client that leaves now leaves it."""
        has_begun = any(choice.answer.has_begun for choice in self.choices)
        return "stream" if has_begun else "first_token"

    def note(self, event: CompletionChunk | CompletionFinished) -> None:
        if isinstance(event, CompletionFinished) and self.outcome != "length":
            self.outcome = event.finish_reason


class Completions:
    """Streams completions over the generators. Belongs to one event loop."""

    def __init__(
        self, generators: Mapping[str, Generator], config: RetinaConfig, secret: bytes, metrics: Metrics
    ) -> None:
        self._generators = generators
        self._config = config
        self._secret = secret  # keys the affinity keys, so that no client can aim at a replica
        self._timeout_s = config.ingress.turn_timeout_s
        self._unattended = Unattended()
        self._num_open = 0
        self.metrics = metrics  # Turns' own
        self.since_s = time.time()  # Unix time

    async def stream(self, asked: CompletionInput) -> AsyncGenerator[CompletionEvent, None]:
        """CompletionStarted, then the chunks of all choices as they come, and a CompletionFinished for each choice.

        Closing the iterator or cancelling it cancels all choices, and so does the first that fails; such a call
        returns when the slots are given back. Raises UnknownModel and InvalidRequest, what the generator raises, and
        DeadlineExceeded, PartUnavailable.
        """
        running = _Running(asked, Deadline.of("completion", self._timeout_s))
        self._num_open += 1
        try:
            model = choose_conversation_model(self._config, asked.model)
            self._begin(model, running)
            yield CompletionStarted(model)
            async with contextlib.aclosing(_join(running.choices)) as events:
                async for event in events:
                    running.note(event)
                    yield event
        except BaseException as error:
            running.outcome = _outcome_of(error)
            raise
        finally:
            self._num_open -= 1
            self._count(running)
            if running.choices:
                await self._unattended.finish(_end(running.choices))

    async def reply(self, asked: CompletionInput) -> tuple[str, tuple[CompletionFinished, ...]]:
        """The model's name and the choices in their order."""
        model, choices = "", []
        async with contextlib.aclosing(self.stream(asked)) as events:
            async for event in events:
                if isinstance(event, CompletionStarted):
                    model = event.model
                elif isinstance(event, CompletionFinished):
                    choices.append(event)
        return model, tuple(sorted(choices, key=lambda choice: choice.index))

    async def drain(self) -> None:
        """Wait for the ends of generators whose clients are gone."""
        await self._unattended.drain()

    def statistics(self) -> Json:
        return {
            "open_completions": self._num_open,
            "ending_completions": len(self._unattended),
            **self.metrics.snapshot(),
        }

    def _begin(self, model: str, running: _Running) -> None:
        asked = running.asked
        limit = self._config.ingress.max_choices
        if not 1 <= asked.num_choices <= limit:
            raise InvalidRequest(f"n must be 1 to {limit} (ingress.max_choices), not {asked.num_choices}", "n")
        request = GenerateRequest(
            request_id=asked.request_id,
            tenant=asked.tenant,
            messages=asked.messages,
            sampling=asked.sampling.to_params(self._config.generator_of(model)),
            timeout_s=running.deadline.left_s,
            session_key=_affinity_key(self._secret, asked),
            keeps_all=asked.keeps_all,
        )
        for index in range(asked.num_choices):
            one = replace(request, sampling=_sampling_of(request.sampling, index))
            answer = open_answer(self._generators, model, one, running.deadline)
            running.choices.append(_Choice(index, answer, asked.sampling.num_logprobs is not None))

    def _count(self, running: _Running) -> None:
        self.metrics.count("ingress_completions", label=running.outcome)
        if running.outcome == "cancelled":
            self.metrics.count("ingress_completions_cancelled", label=running.stage)


def choose_conversation_model(config: RetinaConfig, wished: str | None) -> str:
    """Raises UnknownModel naming those that there are."""
    names = [model.name for model in config.models]
    if wished is None:
        return config.first_model
    if wished not in names:
        raise UnknownModel(f"unknown model {shorten(wished)!r}; choose one of: {', '.join(names)}", "model")
    return wished


def affinity_of(key: str | None, messages: Sequence[Message]) -> str:
    """Requests with the same beginning go where it is remembered: those with one key of their clients', about one
    picture, or with the same first question. The kinds are told apart: a key must not be able to stand for another
    request's picture.
    """
    if key:
        return f"key\0{key}"
    for message in messages:
        if message.images:
            return f"image\0{message.images[0].id}"
    num_first = next(index for index, message in enumerate(messages) if message.role == "user") + 1
    return "\0".join(["text", *(message.text for message in messages[:num_first])])


def _join(choices: list[_Choice]) -> AsyncGenerator[CompletionChunk | CompletionFinished, None]:
    if len(choices) == 1:  # without a queue in between
        return choices[0].stream()
    return merge([choice.stream() for choice in choices])


async def _end(choices: list[_Choice]) -> None:
    await asyncio.gather(*(choice.answer.end() for choice in choices))


def _sampling_of(sampling: SamplingParams, index: int) -> SamplingParams:
    """Choices with one seed would all be the same; without a seed each draws its own."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + index) % NUM_SEEDS)


def _affinity_key(secret: bytes, asked: CompletionInput) -> str:
    if not asked.affinity:
        return ""
    value = b"completion\0" + asked.affinity.encode(errors="surrogatepass")
    return hmac.digest(tenant_secret(secret, asked.tenant), value, hashlib.sha256).hex()


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    return "refused" if isinstance(error, RetinaError) and error.status < 500 else "failed"
