"""Ray handles dressed as the Protocols of types.py: affinity, cancellation, deadlines, and Ray's errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped,unused-ignore]
import ray
import ray.exceptions
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random_exponential

from deployments.capacity import Cluster, Node
from deployments.errors import DeadlineExceeded, Overloaded, PartUnavailable, RetinaError
from deployments.record_types import Record, RecordKind
from deployments.types import (
    Chunk,
    EncodeRequest,
    GenerateRequest,
    ImageFeatures,
    Json,
    Message,
    SessionSummary,
    Turn,
    TurnOutcome,
    TurnRequest,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)
RESTART_S = 5.0  # about how long a replica takes to come back
STATISTICS_TIMEOUT_S = 5.0
# Replicas can be called in two ways. Directly, by gRPC, for what is small: less than half the processor time, errors
# come as they were raised. Through Ray's object store: large arrays are read where they lie, errors come wrapped.
# Plain pickle, as all that travels is made of importable classes: cloudpickle takes three times as long.
DIRECTLY = {"_by_reference": False, "request_serialization": "pickle", "response_serialization": "pickle"}
BY_REFERENCE = {"_by_reference": True}
HOP_ALLOWANCE_S = 5.0  # the callee's own deadline should win; this one is for a callee that is gone


@contextlib.contextmanager
def ray_errors_as_ours(part: str) -> Iterator[None]:
    """Raise the RetinaError that a replica raised, or the one that says what became of the replica."""
    try:
        yield
    except asyncio.CancelledError as error:
        if _is_cancelled_from_outside():
            raise
        # Serve raises it, too, when it gave the call up by itself; our own task goes on.
        raise PartUnavailable(f"{part} dropped the request", None, 1.0) from error
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RetinaError):
            raise cause from None
        if isinstance(cause, ray.exceptions.RayActorError):
            raise _gone(part) from error
        raise
    except BackPressureError as error:
        raise Overloaded(f"{part} has too many requests waiting", None, 1.0) from error
    except (ray.exceptions.RayError, RayServeException, grpc.RpcError) as error:
        # Dead actors, workers, nodes, memory, lost objects: whatever it was, this call has no answer.
        raise _gone(part) from error


def _is_cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _gone(part: str) -> PartUnavailable:
    return PartUnavailable(f"a replica of {part} died while it worked on this request", None, RESTART_S)


async def _call(part: str, method: Any, *args: object, timeout_s: float, **named: object) -> Any:
    """One answer from one replica; cancelled there when we are cancelled here or the time is over."""
    response = method.remote(*args, **named)
    try:
        with ray_errors_as_ours(part):
            async with asyncio.timeout(timeout_s):
                return await response
    except TimeoutError as error:
        response.cancel()
        raise DeadlineExceeded(f"{part} did not answer within {timeout_s:g} s") from error
    except asyncio.CancelledError:
        response.cancel()
        raise


async def _outside_request(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as nobody's child: Serve cancels the calls that an HTTP request made when its client goes away."""
    return await asyncio.get_running_loop().create_task(work, context=contextvars.Context())


class RayVisionEncoder:
    """VisionEncoder over a handle; one picture always goes to the same replica while that has room."""

    part = "vision_encoder"

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(**BY_REFERENCE)

    async def encode(self, request: EncodeRequest) -> ImageFeatures:
        # Image ids are keyed hashes, so the routing key is not a value that a client can choose.
        method = self._handle.options(session_id=request.image.id).encode
        features: ImageFeatures = await _call(self.part, method, request, timeout_s=request.timeout_s + HOP_ALLOWANCE_S)
        return features

    async def statistics(self) -> Json:
        statistics: Json = await _call(self.part, self._handle.statistics, timeout_s=STATISTICS_TIMEOUT_S)
        return statistics


class RayGenerator:
    """Generator over a handle; turns of one session go to the same replica while that has room."""

    def __init__(self, handle: DeploymentHandle, model: str) -> None:
        self._handle = handle.options(**DIRECTLY)
        self.part = f"generator-{model}"

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        handle = self._handle.options(stream=True, session_id=request.session_key or request.request_id)
        response = handle.stream.remote(request)
        try:
            with ray_errors_as_ours(self.part):
                async for chunk in response:
                    yield chunk
        finally:
            # Ray cancels nothing by itself when we merely stop reading; after the end this does nothing.
            response.cancel()

    async def statistics(self) -> Json:
        statistics: Json = await _call(self.part, self._handle.statistics, timeout_s=STATISTICS_TIMEOUT_S)
        return statistics


# close_turn is idempotent by its lease, put_record by the record's id, and the others change nothing, so a router
# replica's death is ridden out. Deletions are not repeated: after one whose reply was lost, the second finds nothing.
ride_out_restart = retry(
    retry=retry_if_exception_type((PartUnavailable, Overloaded)),
    wait=wait_random_exponential(multiplier=0.2, max=2),
    stop=stop_after_delay(20),
    reraise=True,
)


class RaySessionRouter:
    """SessionRouter, SessionArchive and RecordArchive over a handle."""

    part = "session_router"

    def __init__(self, handle: DeploymentHandle, lease_wait_s: float) -> None:
        self._handle = handle.options(**DIRECTLY)
        self._timeout_s = lease_wait_s + HOP_ALLOWANCE_S
        self._returning: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    async def open_turn(self, request: TurnRequest) -> Turn:
        """A call that ends without its reply (cancelled, timed out, its replica died) leaves no lease behind.

        The grant may be made all the same, so the lease is minted here and given back by its token.
        """
        session_id, lease = request.session_id or secrets.token_hex(16), secrets.token_hex(16)
        request = replace(request, session_id=session_id, lease=lease)
        try:
            turn: Turn = await _outside_request(self._ask(self._handle.open_turn, request))
        except (asyncio.CancelledError, PartUnavailable, DeadlineExceeded):
            returning = asyncio.create_task(self._give_back(Turn(request.tenant, session_id, lease, "", (), "")))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)
            raise
        return turn

    async def _give_back(self, turn: Turn) -> None:
        """Harmless when nothing was granted. Twice: the first may overtake a grant that is still being made."""
        for wait_s in (0.0, self._timeout_s):
            await asyncio.sleep(wait_s)
            try:
                await self.close_turn(TurnOutcome(turn, None))
            except RetinaError as error:
                logger.warning("session %s may stay busy until its lease expires: %s", turn.session_id, error)

    @ride_out_restart
    async def close_turn(self, outcome: TurnOutcome) -> int:
        length: int = await _outside_request(self._ask(self._handle.close_turn, outcome))
        return length

    @ride_out_restart
    async def history(self, tenant: str, session_id: str) -> tuple[Message, ...]:
        messages: tuple[Message, ...] = await self._ask(self._handle.history, tenant, session_id)
        return messages

    @ride_out_restart
    async def sessions(self, tenant: str, limit: int) -> tuple[SessionSummary, ...]:
        summaries: tuple[SessionSummary, ...] = await self._ask(self._handle.sessions, tenant, limit)
        return summaries

    async def delete_session(self, tenant: str, session_id: str) -> None:
        await self._ask(self._handle.delete_session, tenant, session_id)

    @ride_out_restart
    async def put_record(self, tenant: str, record: Record) -> None:
        await _outside_request(self._ask(self._handle.put_record, tenant, record))

    @ride_out_restart
    async def record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        record: Record = await self._ask(self._handle.record, tenant, kind, record_id)
        return record

    @ride_out_restart
    async def records(
        self, tenant: str, kind: RecordKind, limit: int, after: str | None = None, *, oldest_first: bool = False
    ) -> tuple[Record, ...]:
        records: tuple[Record, ...] = await self._ask(
            self._handle.records, tenant, kind, limit, after, oldest_first=oldest_first
        )
        return records

    async def delete_record(self, tenant: str, kind: RecordKind, record_id: str) -> Record:
        record: Record = await self._ask(self._handle.delete_record, tenant, kind, record_id)
        return record

    async def statistics(self) -> Json:
        statistics: Json = await _call(self.part, self._handle.statistics, timeout_s=STATISTICS_TIMEOUT_S)
        return statistics

    async def _ask(self, method: Any, *args: object, **named: object) -> Any:
        return await _call(self.part, method, *args, timeout_s=self._timeout_s, **named)


class RayParts:
    """What `/-/…` and `/readyz` ask of the other deployments."""

    def __init__(
        self, router: RaySessionRouter, encoder: RayVisionEncoder, generators: Mapping[str, RayGenerator]
    ) -> None:
        self._router = router
        self._encoder = encoder
        self._generators = generators

    async def engines(self) -> dict[str, Json]:
        names = list(self._generators)
        answers = await asyncio.gather(*(_or_error(self._generators[name].statistics) for name in names))
        return dict(zip(names, answers, strict=True))

    async def cache(self) -> Json:
        return await self._encoder.statistics()

    async def router(self) -> Json:
        return await self._router.statistics()

    async def ready(self) -> dict[str, bool | str]:
        parts: dict[str, Callable[[], Awaitable[Json]]] = {
            "session_router": self._router.statistics,
            "vision_encoder": self._encoder.statistics,
            **{generator.part: generator.statistics for generator in self._generators.values()},
        }
        answers = await asyncio.gather(*(_or_error(ask) for ask in parts.values()))
        return {name: _state(answer) for name, answer in zip(parts, answers, strict=True)}


async def _or_error(ask: Callable[[], Awaitable[Json]]) -> Json:
    try:
        return await ask()
    except RetinaError as error:
        return {"error": {"code": error.code, "message": error.message}}
    except Exception as error:  # a fault of the part's own, wrapped by Ray or as it was raised
        logger.warning("a part failed to say how it is", exc_info=error)
        return {"error": {"code": RetinaError.code, "message": "the part failed to say how it is; its log says why"}}


def _state(answer: Json) -> bool | str:
    error = answer.get("error")
    return str(error["message"]) if isinstance(error, Mapping) else True


def cluster_now() -> Cluster | None:
    """What the connected cluster has; None when there is none, as in `serve build`."""
    if not ray.is_initialized():
        return None
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(tuple(Node(float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in alive))
