"""A response comes to be: alone or in a conversation, in one piece or streamed, now or in the background."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.responses import Response

from deployments.errors import NotLastTurn, RetinaError, SessionNotFound
from deployments.ingress.error_replies import internal_error
from deployments.ingress.responses.events import END, ResponseEvents, Said
from deployments.ingress.responses.naming import in_our_words
from deployments.ingress.responses.plan import Plan, plan_response
from deployments.ingress.responses.request import CreateResponse
from deployments.ingress.responses.resource import ResponseBody
from deployments.ingress.responses.states import Outcome, answered, failure_of
from deployments.ingress.services import Services
from deployments.ingress.sse import EventStream, open_events
from deployments.ingress.turn_types import KeptEvent, TurnStarted

T = TypeVar("T")
log = logging.getLogger(__name__)


async def create_response(asked: CreateResponse, services: Services, tenant: str) -> ResponseBody | Response:
    """Cancelled before it returns, it leaves nothing behind. Raises what a plan and a turn raise."""
    plan = await plan_response(asked, services, tenant)
    with in_our_words():
        if not asked.is_stored:
            return await _complete(plan, services, is_streamed=bool(asked.stream))
        if asked.is_kept:
            kept = await _or_fork(plan, lambda each: _begin_kept(each, services, is_background=bool(asked.background)))
            return stream_kept(kept, services, tenant) if asked.stream else kept
        if asked.stream:
            return await _or_fork(plan, lambda each: _stream_turn(each, services))
        return await _or_fork(plan, lambda each: _take_turn(each, services))


def stream_kept(response: ResponseBody, services: Services, tenant: str, after: int = -1) -> EventStream[bytes]:
    """The events behind the one with this sequence number; the response's stream must be there."""
    said = _without_index(services.streams.follow(tenant, response.id))
    return _to_stream([], _write(said, ResponseEvents(response), after, num_in_time=0), services)


# ------------------------------------------------------------------------------------- ways to an answer


async def _complete(plan: Plan, services: Services, *, is_streamed: bool) -> ResponseBody | Response:
    given = plan.to_completion()
    if is_streamed:
        return await _open_stream(services.completions.stream(given), plan, services)
    model, choices = await services.completions.reply(given)
    return answered(plan.response, Outcome.of_completion(model, choices[0]))


async def _take_turn(plan: Plan, services: Services) -> ResponseBody:
    return answered(plan.response, Outcome.of_turn(await services.turns.reply(plan.to_turn())))


async def _stream_turn(plan: Plan, services: Services) -> Response:
    return await _open_stream(services.turns.stream(plan.to_turn()), plan, services)


async def _begin_kept(plan: Plan, services: Services, *, is_background: bool) -> ResponseBody:
    """The record comes first: from the instant that the turn is answered it must say so."""
    response = plan.response
    await services.records.put_record(plan.tenant, plan.draft.to_record())
    try:
        await services.streams.begin(plan.to_turn(), stream_id=response.id, is_background=is_background)
    except BaseException:
        await services.records.delete_record(plan.tenant, "response", response.id)
        raise
    return response.model_copy(update={"model": await _model_of(response.id, plan, services)})


async def _model_of(stream_id: str, plan: Plan, services: Services) -> str:
    async with contextlib.aclosing(services.streams.follow(plan.tenant, stream_id)) as events:
        async for _, event in events:
            assert isinstance(event, TurnStarted)
            return event.model
    raise AssertionError("a stream begins with TurnStarted")


async def _or_fork(plan: Plan, begin: Callable[[Plan], Awaitable[T]]) -> T:
    """The conversation of the previous response may have gone on since, or be gone."""
    try:
        return await begin(plan)
    except (NotLastTurn, SessionNotFound):
        if plan.follows is None:
            raise
    return await begin(plan.forked())


# ------------------------------------------------------------------------------------- streams


async def _open_stream(said: AsyncGenerator[Said, None], plan: Plan, services: Services) -> EventStream[bytes]:
    """Failures up to the first piece are raised, while a status can be sent."""
    lines = _write(said, ResponseEvents(plan.response), num_in_time=2)
    return _to_stream(await open_events(lines), lines, services)


def _to_stream(opening: list[bytes], lines: AsyncGenerator[bytes, None], services: Services) -> EventStream[bytes]:
    return EventStream(opening, lines, bytes, services.config.ingress.turn_timeout_s)


async def _write(
    said: AsyncGenerator[Said, None], events: ResponseEvents, after: int = -1, *, num_in_time: int
) -> AsyncGenerator[bytes, None]:
    """Events and [DONE]. What fails before `num_in_time` things were said is raised, later failures are events."""
    async with contextlib.aclosing(said):
        for _ in range(num_in_time):
            yield events.encode(await anext(said), after)
        try:
            with in_our_words():
                async for each in said:
                    if lines := events.encode(each, after):
                        yield lines
        except RetinaError as error:
            yield events.encode(failure_of(error), after)
        except Exception:
            log.exception("response %s failed in mid-stream", events.response.id)
            yield events.encode(failure_of(internal_error()), after)
        yield END


async def _without_index(
    events: AsyncGenerator[tuple[int, KeptEvent], None],
) -> AsyncGenerator[KeptEvent, None]:
    async with contextlib.aclosing(events):
        async for _, event in events:
            yield event
