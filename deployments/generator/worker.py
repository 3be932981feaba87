"""The one thread that owns the model: takes sequences in, steps the runner, sends what each step made.

It sleeps while there is nothing to compute. Nothing that a request does ends it; if it ends by a fault of its own,
every open stream is told, and so is everyone who comes later.
"""

from __future__ import annotations

import logging
import threading
import time

import torch

from deployments.errors import PartUnavailable, RetinaError
from deployments.generator.sampling import NOT_A_TOKEN
from deployments.generator.sequence import Sequence
from deployments.generator.step import Runner, Step
from deployments.generator.step_log import StepLog
from deployments.generator.stream import Delivery, deliver_soon
from deployments.metrics import Metrics
from deployments.models.family import Ruling

logger = logging.getLogger(__name__)


class Worker:
    def __init__(
        self, runner: Runner, stop_token_ids: frozenset[int], metrics: Metrics, name: str, num_threads: int
    ) -> None:
        self.runner = runner
        self._num_threads = num_threads  # of torch
        self.log = StepLog()
        self._stop_token_ids = stop_token_ids
        self._metrics = metrics
        self._changed = threading.Condition()  # guards the fields below
        self._sequences: list[Sequence] = []  # all that were handed over and are not finished, by arrival
        self._closing: str | None = None  # why
        self._thread = threading.Thread(target=self._run, name=f"generator-{name}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ from any thread

    def submit(self, sequence: Sequence) -> None:
        """Raises PartUnavailable when the worker is closed."""
        with self._changed:
            if self._closing is not None:
                raise PartUnavailable(self._closing)
            self._sequences.append(sequence)
            # Encoding takes longer for some than for others; the order of arrival is what counts.
            self._sequences.sort(key=lambda sequence: sequence.number)
            self._changed.notify_all()

    def drop(self, sequence: Sequence) -> None:
        """Nobody reads this one any more: its slot is free before the next step begins."""
        with self._changed:
            sequence.is_dropped = True
            self._changed.notify_all()

    def close(self, reason: str) -> None:
        """Finish the step that runs, fail what is unfinished, and join the thread. May be called again."""
        with self._changed:
            self._closing = self._closing or reason
            self._changed.notify_all()
        self._thread.join()

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no sequence is left; False when that took longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._sequences, timeout_s)

    @property
    def closing(self) -> str | None:
        """Why nothing is accepted any more; None while all is well."""
        return self._closing

    def sequences(self) -> list[Sequence]:
        with self._changed:
            return list(self._sequences)

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        # Here and not where the model is loaded: OpenMP keeps threads for each thread that computed with some, and once
        # it has more of them than there are cores, they no longer spin while they wait: a step takes twice as long.
        torch.set_num_threads(self._num_threads)
        try:
            with torch.inference_mode():
                while sequences := self._next_sequences():
                    self._step(sequences)
                for sequence in self.sequences():
                    self.runner.release(sequence)
        except Exception:
            # Nothing is released: a runner or a device in an unknown state would only fail again.
            logger.exception("the engine's thread ended by a fault of its own")
        finally:
            self._fail_all()

    def _next_sequences(self) -> list[Sequence]:
        """Sleep until there is something to compute; empty when closing."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._sequences or self._closing is not None)
                if self._closing is not None:
                    return []
                sequences = list(self._sequences)
            abandoned = [sequence for sequence in sequences if sequence.is_abandoned]
            if not abandoned:
                return sequences
            self._remove(abandoned)

    def _step(self, sequences: list[Sequence]) -> None:
        began = time.monotonic()
        step = self.runner.step(sequences)
        now = time.monotonic()
        num_before = _count_tokens(step)
        deliveries: list[Delivery] = []
        for sequence, token_id in step.tokens:
            self._accept(sequence, token_id, now, deliveries, step)
        deliveries += [(sequence.stream, self._explain(sequence, error)) for sequence, error in step.failures]
        self._record(step, began, now, _count_tokens(step) - num_before)
        # Freed before anybody hears of it: who has read a last chunk finds the slot free.
        finished = [sequence for sequence, _ in step.tokens if sequence.is_finished]
        self._remove(finished + [sequence for sequence, _ in step.failures])
        deliver_soon(deliveries)

    def _accept(self, sequence: Sequence, token_id: int, now: float, deliveries: list[Delivery], step: Step) -> None:
        try:
            if token_id == NOT_A_TOKEN:
                raise RetinaError("the model's numbers for this request are not finite; no answer can be given")
            chunk = sequence.accept(token_id, self._stop_token_ids, now, _rule(sequence, token_id, step))
        except Exception as error:  # its own text or numbers: the others go on
            step.failures.append((sequence, error))
        else:
            if chunk is not None:
                deliveries.append((sequence.stream, chunk))

    def _explain(self, sequence: Sequence, error: Exception) -> RetinaError:
        if isinstance(error, RetinaError):
            return error
        logger.error("request %s failed in the engine", sequence.request_id, exc_info=error)
        return RetinaError("the engine failed while it computed this request; its log says why")

    def _remove(self, sequences: list[Sequence]) -> None:
        # Released outside the lock: clearing slots takes a while, and event loops wait for the lock.
        for sequence in sequences:
            self.runner.release(sequence)
        with self._changed:
            for sequence in sequences:
                self._sequences.remove(sequence)
            self._changed.notify_all()

    def _record(self, step: Step, began: float, now: float, new_tokens: int) -> None:
        self.log.record(
            began,
            now,
            prefill_tokens=step.num_prefill_tokens,
            decode_batch=step.num_decodes,
            new_tokens=new_tokens,
            failures=len(step.failures),
        )
        self._metrics.count("generator_prompt_tokens", step.num_prefill_tokens)
        self._metrics.count("generator_reused_tokens", step.num_reused_tokens)
        self._metrics.count("generator_completion_tokens", new_tokens)
        self._metrics.count("generator_steps", 1 if step.num_decodes else 0)

    def _fail_all(self) -> None:
        with self._changed:
            self._closing = reason = self._closing or "the engine stopped after an internal fault"
            deliver_soon([(sequence.stream, PartUnavailable(reason)) for sequence in self._sequences])
            self._sequences.clear()
            self._changed.notify_all()


def _count_tokens(step: Step) -> int:
    return sum(len(sequence.token_ids) for sequence, _ in step.tokens)


def _rule(sequence: Sequence, token_id: int, step: Step) -> Ruling | None:
    """What the sequence's rules, if it has any, say of the token."""
    if sequence.rules is None:
        return None
    hidden = step.hidden[sequence]
    ruling = sequence.rules.accept(token_id, hidden)
    # Checked here, where it is this request's fault alone: in the next pass it would be the whole batch's.
    assert ruling.embedding is None or ruling.embedding.shape == hidden.shape, (ruling.embedding.shape, hidden.shape)
    return ruling
