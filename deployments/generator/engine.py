"""The engine of one model: takes requests on the event loop, has the worker's thread compute, streams the answers.

The route of a request: `stream` admits it, `_prepare` builds the prompt and pulls the pictures' features (all at once,
no thread of ours held), the worker computes it among others, and its chunks come back to `stream`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator

from deployments.config import GeneratorConfig, RetinaConfig
from deployments.errors import DeadlineExceeded, Overloaded, PartUnavailable, RetinaError
from deployments.generator.admission import check_request
from deployments.generator.continuation import check_answered
from deployments.generator.grammar import open_grammars
from deployments.generator.loading import load_model
from deployments.generator.modes import build_runner
from deployments.generator.prefix_tree import NO_MATCH
from deployments.generator.scheduler import estimate_retry_s
from deployments.generator.sequence import Sequence
from deployments.generator.sequence_builder import SequenceBuilder
from deployments.generator.stream import AnswerStream
from deployments.generator.ticket import Ticket
from deployments.generator.token_mask import OpenMask
from deployments.generator.worker import Worker
from deployments.metrics import Metrics
from deployments.models.family import LanguageModel, PromptFormat
from deployments.types import Chunk, GenerateRequest, Json, VisionEncoder

logger = logging.getLogger(__name__)


class Engine:
    """A Generator over one model. Its streams belong to one event loop; `close`, `check` and `wait_idle` block."""

    def __init__(
        self,
        language: LanguageModel,
        prompts: PromptFormat,
        encoder: VisionEncoder,
        config: GeneratorConfig,
        *,
        model: str = "model",
        metrics: Metrics | None = None,
        open_mask: OpenMask | None = None,
    ) -> None:
        """`open_mask` says for a request which tokens its answer may hold; it is called in a thread and may raise
        RetinaErrors. None: requests with a grammar are refused."""
        self.model = model
        self.context_tokens = min(config.max_context_tokens, language.max_context_tokens)
        self.metrics = metrics or Metrics()
        self._language = language
        self._config = config
        self._stop_token_ids = prompts.stop_token_ids
        self._numbers = itertools.count()
        self._live: set[Ticket] = set()
        runner = build_runner(language, config, self.context_tokens)
        self._worker = Worker(runner, prompts.stop_token_ids, self.metrics, model, config.num_threads)
        self._builder = SequenceBuilder(model, prompts, encoder, runner.prefix, self.context_tokens, open_mask)

    # ------------------------------------------------------------------ one request

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Chunks of one answer. Closing the iterator frees the request's slot before the next step.

        Raises InvalidRequest, PromptTooLong, Overloaded, DeadlineExceeded, PartUnavailable, and what the vision
        encoder raises.
        """
        outcome = "cancelled"
        ticket: Ticket | None = None
        try:
            ticket = self._admit(request)
            while outcome == "cancelled":
                chunk = await ticket.stream.next_chunk()
                outcome = chunk.finish_reason or outcome
                yield chunk
        except Exception as error:
            outcome = _outcome(error)
            raise
        finally:
            self.metrics.count("generator_requests", label=outcome)
            if ticket is not None:
                self._leave(ticket, is_cancelled=outcome == "cancelled")

    def _admit(self, request: GenerateRequest) -> Ticket:
        arrived = time.monotonic()
        if self.closing is not None:
            raise PartUnavailable(self.closing)
        check_request(request, self._config)
        check_answered(request, self._language.vocab_size, self._stop_token_ids)
        timeout_s = min(request.timeout_s, self._config.max_timeout_s)
        if not timeout_s > 0:  # nan included
            raise DeadlineExceeded("the time for this request was over when it reached the generator")
        self._require_room(arrived)
        ticket = Ticket(next(self._numbers), request, AnswerStream(), arrived, arrived + timeout_s)
        ticket.preparing = asyncio.create_task(self._prepare(ticket))
        # On the event loop, so that it also holds for a reader who waits, and for one who has stopped reading.
        ticket.expiry = ticket.stream.loop.call_later(timeout_s, self._expire, ticket, timeout_s)
        self._live.add(ticket)
        return ticket

    def _require_room(self, now: float) -> None:
        # Those of an event loop that was closed under them can no longer take themselves off.
        self._live = {ticket for ticket in self._live if ticket.stream.is_reachable}
        remaining = [ticket.num_remaining for ticket in self._live if not ticket.is_finished]
        if len(remaining) < self._worker.runner.num_slots + self._config.max_waiting_requests:
            return
        retry_after_s = estimate_retry_s(remaining, self._worker.log.tokens_per_s(now), self._config.max_timeout_s)
        raise Overloaded(
            f"{self.model} has {self._worker.runner.num_slots} requests running and "
            f"{self._config.max_waiting_requests} waiting, which is all it takes",
            retry_after_s=retry_after_s,
        )

    def _expire(self, ticket: Ticket, timeout_s: float) -> None:
        if ticket in self._live:
            ticket.stream.fail(DeadlineExceeded(f"no complete answer within {timeout_s:g} s (stage {ticket.stage})"))
            self._free(ticket)

    def _leave(self, ticket: Ticket, *, is_cancelled: bool) -> None:
        if is_cancelled:
            self.metrics.count("generator_cancelled", label=ticket.stage)
        self._free(ticket)

    def _free(self, ticket: Ticket) -> None:
        """Stop all work for it, wherever it stands; harmless when it is done."""
        self._live.discard(ticket)
        if ticket.expiry is not None:
            ticket.expiry.cancel()
        if ticket.preparing is not None:
            ticket.preparing.cancel()
        if ticket.sequence is not None:
            self._worker.drop(ticket.sequence)

    # ------------------------------------------------------------------ from request to sequence

    async def _prepare(self, ticket: Ticket) -> None:
        """Build the prompt, pull features, hand over; what goes wrong goes to the stream."""
        try:
            ticket.sequence = sequence = await self._builder.build(ticket)
            if sequence.ended is None:
                self._submit(sequence)
            else:
                ticket.stream.push(sequence.end_at_once(time.monotonic()))
        except RetinaError as error:
            ticket.stream.fail(error)
        except Exception as error:
            logger.exception("request %s failed before it was computed", ticket.request.request_id)
            failure = RetinaError("the generator failed while it prepared this request; its log says why")
            failure.__cause__ = error
            ticket.stream.fail(failure)

    def _submit(self, sequence: Sequence) -> None:
        try:
            self._worker.submit(sequence)
        except PartUnavailable:  # so nobody is going to release it
            self._builder.unpin(sequence.match)
            sequence.match = NO_MATCH
            raise

    # ------------------------------------------------------------------ the engine as a whole

    async def statistics(self) -> Json:
        """What the engine is and does right now, JSON-ready."""
        live = sorted((t for t in self._live if not t.is_finished), key=lambda ticket: ticket.number)
        slots_used = sum(sequence.slot is not None for sequence in self._worker.sequences())
        return {
            "model": self.model,
            "mode": self._config.mode,
            "device": str(self._language.device),
            "dtype": str(self._language.dtype).removeprefix("torch."),
            "context_tokens": self.context_tokens,
            "num_slots": self._worker.runner.num_slots,
            "free_slots": self._worker.runner.num_slots - slots_used,
            "waiting": sum(ticket.stage in ("waiting", "encode") for ticket in live),
            "running": [ticket.describe() for ticket in live],
            "last_plans": self._worker.log.last_plans(),
            "kv_cache_bytes": self._worker.runner.num_cache_bytes,
            "prefix_cache": prefix.statistics() if (prefix := self._worker.runner.prefix) is not None else None,
            "tokens_per_s": round(self._worker.log.tokens_per_s(time.monotonic()), 1),
            "closing": self.closing,
            "metrics": self.metrics.snapshot(),
        }

    @property
    def closing(self) -> str | None:
        """Why nothing is accepted any more, None while all is well: a replica that says why must be replaced."""
        return self._worker.closing

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until the worker has nothing left; False when that took longer."""
        return self._worker.wait_idle(timeout_s)

    def check(self) -> tuple[str, ...]:
        """What is not as it must be in an idle engine; empty when all is well. Reads the whole KV cache."""
        problems = [f"request {ticket.request.request_id} is still live" for ticket in self._live]
        problems += [f"sequence {item.request_id} is still in the worker" for item in self._worker.sequences()]
        return tuple(problems or self._worker.runner.problems())

    def close(self) -> None:
        """End the thread; open streams fail with PartUnavailable, and so does whoever comes later."""
        reason = f"the generator of {self.model} was closed"
        self._worker.close(reason)
        for ticket in tuple(self._live):
            if ticket.stream.is_reachable:
                ticket.stream.loop.call_soon_threadsafe(ticket.stream.fail, PartUnavailable(reason))


def _outcome(error: Exception) -> str:
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    if isinstance(error, Overloaded) or (isinstance(error, RetinaError) and error.status < 500):
        return "rejected"
    return "failed"


def open_engine(config: RetinaConfig, model: str, encoder: VisionEncoder) -> Engine:
    """The engine of a configured model. Blocks while weights load. Raises CheckpointError."""
    language, prompts = load_model(config, model)
    section = config.generator_of(model)
    open_mask = open_grammars(prompts, language.vocab_size, section)
    return Engine(language, prompts, encoder, section, model=model, open_mask=open_mask)
