"""Users who ask at the same time: each goes through its requests one after the other, without a pause between them.

Knows nothing of HTTP: `Talk` is one conversation with whatever answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from benchmarks.pictures import picture
from benchmarks.speakers import Answer, Question
from benchmarks.summary import Record

QUESTION = "What is in this picture?"


@dataclass(frozen=True, slots=True)
class Scenario:
    """What one request is. A request of several turns is a conversation, or as many sessions about one picture."""

    about: str
    pictures: Literal["unique", "same", "none"] = "unique"
    turns: int = 1
    max_tokens: int = 64
    is_conversation: bool = True  # False: every turn is a session of its own and shows the picture again
    asks_anew: bool = False  # no two questions are equal, also in first turns


SCENARIOS: Mapping[str, Scenario] = {
    "unique": Scenario("a new picture with each request, one short question"),
    "same": Scenario("one picture for everybody, a new question with each request", "same", asks_anew=True),
    "text": Scenario("no picture, a new question with each request", "none", asks_anew=True),
    "repeat": Scenario("a new picture, and in another session a new question about it", turns=2, is_conversation=False),
    "conversation": Scenario("conversations of 4 turns about a new picture", turns=4, max_tokens=32),
    "long": Scenario("conversations of 8 turns about a new picture", turns=8, max_tokens=32),
}


@dataclass(frozen=True, slots=True)
class Load:
    scenario: Scenario
    users: int
    requests: int  # of each user
    seed: str  # pictures of equal seeds are equal: a service that has seen them may remember them
    max_tokens: int | None = None  # None: the scenario's

    def picture_key(self, user: int, request: int) -> str | None:
        if self.scenario.pictures == "none":
            return None
        return f"{self.seed}/all" if self.scenario.pictures == "same" else f"{self.seed}/{user}/{request}"

    def question(self, user: int, request: int, turn: int) -> str:
        is_new = turn > 0 or self.scenario.asks_anew
        return f"{QUESTION} (user {user}, request {request}, turn {turn})" if is_new else QUESTION


@dataclass(frozen=True, slots=True)
class Reply:
    sent_s: float
    end_s: float
    answer: Answer


class Talk(Protocol):
    async def ask(self, question: Question) -> Reply:
        """Raises BadAnswer."""
        ...


OpenTalk = Callable[[], Talk]


class LoadFailed(RuntimeError):
    """A request got no answer: the load was broken off, and there are no figures."""


async def warm_up(load: Load, open_talk: OpenTalk) -> None:
    """One short answer before anything is measured, about a picture that the load does not show."""
    shown = None if load.scenario.pictures == "none" else picture(f"{load.seed}/warm-up")
    await open_talk().ask(Question("Warm up.", 8, shown))


async def run_load(load: Load, open_talk: OpenTalk) -> list[Record]:
    """All users at once. The first bad answer ends everything. Raises LoadFailed."""
    shown = _draw(load)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run_user(load, user, open_talk, shown)) for user in range(load.users)]
    except* Exception as failures:
        first = failures.exceptions[0]
        raise LoadFailed(f"{type(first).__name__}: {first}") from first
    return [record for task in tasks for record in task.result()]


def _draw(load: Load) -> dict[str, bytes]:
    """All pictures before the clock starts."""
    pairs = [(user, request) for user in range(load.users) for request in range(load.requests)]
    keys = {load.picture_key(user, request) for user, request in pairs}
    return {key: picture(key) for key in keys if key is not None}


async def _run_user(load: Load, user: int, open_talk: OpenTalk, shown: Mapping[str, bytes]) -> list[Record]:
    records = []
    for request in range(load.requests):
        key = load.picture_key(user, request)
        talk = open_talk()
        for turn in range(load.scenario.turns):
            begins = turn == 0 or not load.scenario.is_conversation
            if begins and turn > 0:
                talk = open_talk()
            question = Question(
                load.question(user, request, turn),
                load.max_tokens or load.scenario.max_tokens,
                shown[key] if begins and key is not None else None,
            )
            records.append(_record(user, request, turn, await talk.ask(question)))
    return records


def _record(user: int, request: int, turn: int, reply: Reply) -> Record:
    answer = reply.answer
    return Record(
        user=user,
        request=request,
        turn=turn,
        sent_s=reply.sent_s,
        times_s=answer.times_s,
        end_s=reply.end_s,
        num_tokens=answer.num_tokens,
        num_prompt_tokens=answer.num_prompt_tokens,
        num_reused_tokens=answer.num_reused_tokens,
    )
