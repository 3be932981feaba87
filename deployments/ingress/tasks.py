"""The route of one task: a model with the skill, one picture, no session. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace

from deployments.config import RetinaConfig
from deployments.errors import DeadlineExceeded, InvalidRequest, RetinaError
from deployments.ingress.answer import Answer, ending_of, find_event, open_answer
from deployments.ingress.deadline import Deadline
from deployments.ingress.model_choice import choose_model
from deployments.ingress.task_types import TaskChunk, TaskEvent, TaskFinished, TaskInput, TaskReply, TaskStarted
from deployments.ingress.unattended import Unattended
from deployments.metrics import Metrics
from deployments.prices import cost_of_answer
from deployments.types import (
    SKILL_OF,
    Box,
    Chunk,
    DetectTask,
    GenerateRequest,
    Generator,
    ImagePart,
    Json,
    Message,
    Point,
    PointTask,
    QueryTask,
    SamplingParams,
    TokenLogprob,
)


@dataclass(slots=True)
class _Running:
    """A task under way."""

    asked: TaskInput
    deadline: Deadline
    answer: Answer | None = None
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    found: list[Box | Point] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    outcome: str = ""  # set when the answer is whole, or by what went wrong

    def add(self, chunk: Chunk) -> None:
        self.texts.append(chunk.text)
        self.thoughts.append(chunk.thought)
        self.found.extend(chunk.found)
        self.logprobs.extend(chunk.logprobs)
        self.outcome = chunk.finish_reason or ""

    def to_reply(self, config: RetinaConfig, model: str, last: Chunk) -> TaskReply:
        ending = ending_of(last)
        return TaskReply(
            request_id=self.asked.request_id,
            model_used=model,
            text="".join(self.texts),
            thought="".join(self.thoughts),
            grounding=last.grounding,
            found=tuple(self.found),
            finish_reason=ending.finish_reason,
            usage=ending.usage,
            timings=ending.timings,
            logprobs=tuple(self.logprobs) if self.asked.sampling.num_logprobs is not None else None,
            cost=cost_of_answer(config, model, ending.usage),
        )


class Tasks:
    """Streams tasks over the generators. Belongs to one event loop."""

    def __init__(
        self, generators: Mapping[str, Generator], config: RetinaConfig, metrics: Metrics | None = None
    ) -> None:
        self._generators = generators
        self._config = config
        self._timeout_s = config.ingress.turn_timeout_s
        self._unattended = Unattended()
        self._num_open = 0
        self.metrics = metrics or Metrics()  # Turns' own, where both are parts of one ingress

    async def stream(self, asked: TaskInput) -> AsyncGenerator[TaskEvent, None]:
        """TaskStarted, then TaskChunks, then TaskFinished.

        Closing the iterator or cancelling it cancels the generator; such a call returns when the slot is given back.
        Raises UnknownModel and InvalidRequest, what the generator raises, and DeadlineExceeded, PartUnavailable.
        """
        running = _Running(asked, Deadline.of("task", self._timeout_s))
        self._num_open += 1
        try:
            _require_picture(asked)
            model = choose_model(self._config, SKILL_OF[type(asked.task)], asked.model)
            running.answer = answer = self._generate(model, running)
            yield TaskStarted(model)
            while not answer.is_whole:
                chunk = await answer.next_chunk()
                running.add(chunk)
                for piece in _pieces(chunk):
                    yield piece
            yield TaskFinished(running.to_reply(self._config, model, chunk))
        except BaseException as error:
            running.outcome = running.outcome or _outcome_of(error)
            raise
        finally:
            self._num_open -= 1
            self._count(running)
            if running.answer is not None:
                await self._unattended.finish(running.answer.end())

    async def reply(self, asked: TaskInput) -> TaskReply:
        """The same task without the pieces."""
        return (await find_event(TaskFinished, self.stream(asked))).reply

    async def drain(self) -> None:
        """Wait for the ends of generators whose clients are gone."""
        await self._unattended.drain()

    def statistics(self) -> Json:
        return {"open_tasks": self._num_open, "ending_tasks": len(self._unattended), **self.metrics.snapshot()}

    def _generate(self, model: str, running: _Running) -> Answer:
        asked, image = running.asked, running.asked.image
        request = GenerateRequest(
            request_id=asked.request_id,
            tenant=asked.tenant,
            messages=(Message("user", (ImagePart(image),) if image is not None else ()),),
            sampling=self._sampling(model, asked),
            timeout_s=running.deadline.left_s,
            # Tasks about one picture go to one replica. Ids of pictures are keyed hashes, so the routing key is not a
            # value that a client can choose.
            session_key=image.id if image is not None else "",
            task=asked.task,
        )
        return open_answer(self._generators, model, request, running.deadline)

    def _sampling(self, model: str, asked: TaskInput) -> SamplingParams:
        limits = self._config.generator_of(model)
        wish = asked.sampling
        if wish.max_new_tokens is None and isinstance(asked.task, DetectTask | PointTask):
            wish = replace(wish, max_new_tokens=limits.max_new_tokens)  # max_objects says where such an answer ends
        return wish.to_params(limits)

    def _count(self, running: _Running) -> None:
        skill = SKILL_OF[type(running.asked.task)]
        self.metrics.count("ingress_tasks", label=f"{skill}.{running.outcome}")
        if running.outcome == "cancelled":
            stage = running.answer.stage if running.answer is not None else "first_token"
            self.metrics.count("ingress_tasks_cancelled", label=stage)


def _require_picture(asked: TaskInput) -> None:
    if asked.image is not None:
        return
    if not isinstance(asked.task, QueryTask):
        raise InvalidRequest("a picture is missing; send image or image_id", "image")
    if asked.task.spatial_refs:
        raise InvalidRequest("spatial_refs are places in a picture; send image or image_id", "image")


def _pieces(chunk: Chunk) -> list[TaskChunk]:
    kinds = (TaskChunk(thought=chunk.thought), TaskChunk(text=chunk.text), TaskChunk(found=chunk.found))
    pieces = [piece for piece in kinds if piece != TaskChunk()]
    if chunk.logprobs:  # nothing says which of them belong to the thoughts
        last = pieces.pop() if pieces else TaskChunk()
        pieces.append(replace(last, logprobs=chunk.logprobs))
    return pieces


def _outcome_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    return "refused" if isinstance(error, RetinaError) and error.status < 500 else "failed"
