"""Who asks what, in which order, about which picture."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

import pytest

from benchmarks.pictures import picture
from benchmarks.speakers import Answer, BadAnswer, Question
from benchmarks.users import SCENARIOS, Load, LoadFailed, Reply, run_load, warm_up


@dataclass
class Service:
    """Answers everything; counts who asks at the same time."""

    wait_for: int = 1  # users who must ask at once before anybody gets an answer
    fails_at: int = -1  # question, counted from 0
    asked: list[tuple[int, Question]] = field(default_factory=list)  # talk and question
    num_talks: int = 0
    _now: int = 0
    _all_here: asyncio.Event = field(default_factory=asyncio.Event)

    def open_talk(self) -> Talk:
        self.num_talks += 1
        return Talk(self, self.num_talks - 1)

    async def answer(self, talk: int, question: Question) -> Reply:
        self.asked.append((talk, question))
        if len(self.asked) - 1 == self.fails_at:
            raise BadAnswer("nothing came")
        self._now += 1
        if self._now == self.wait_for:
            self._all_here.set()
        await self._all_here.wait()
        self._now -= 1
        number = float(len(self.asked))
        return Reply(number, number + 1, Answer("yes", (number + 0.5,), 3, 10, 0))


@dataclass(frozen=True)
class Talk:
    service: Service
    number: int

    async def ask(self, question: Question) -> Reply:
        return await self.service.answer(self.number, question)


async def run(scenario: str, users: int = 2, requests: int = 2) -> Service:
    service = Service(wait_for=users)
    await run_load(Load(SCENARIOS[scenario], users, requests, "seed"), service.open_talk)
    return service


def shown(service: Service) -> list[bytes | None]:
    return [question.picture for _, question in service.asked]


async def test_users_ask_at_the_same_time() -> None:
    service = Service(wait_for=5)

    records = await run_load(Load(SCENARIOS["unique"], 5, 3, "seed"), service.open_talk)

    assert len(records) == 15
    assert {(record.user, record.request) for record in records} == {(u, r) for u in range(5) for r in range(3)}


async def test_unique_pictures_are_all_different_and_the_question_is_one() -> None:
    service = await run("unique")

    assert None not in shown(service)
    assert len(set(shown(service))) == 4
    assert len({question.text for _, question in service.asked}) == 1


async def test_one_picture_for_all_gets_new_questions() -> None:
    service = await run("same")

    assert len(set(shown(service))) == 1
    assert len({question.text for _, question in service.asked}) == 4


async def test_text_shows_nothing() -> None:
    assert set(shown(await run("text"))) == {None}


async def test_a_conversation_shows_its_picture_once() -> None:
    service = await run("conversation", users=1, requests=2)

    talks = [talk for talk, _ in service.asked]
    assert talks == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [data is not None for data in shown(service)] == [True, False, False, False] * 2
    assert {question.max_tokens for _, question in service.asked} == {32}


async def test_a_repeated_picture_is_shown_again_in_a_new_session() -> None:
    service = await run("repeat", users=1, requests=2)

    assert [talk for talk, _ in service.asked] == [0, 1, 2, 3]
    first, again, other, _ = shown(service)
    assert first == again != other
    assert service.asked[0][1].text != service.asked[1][1].text


@pytest.mark.parametrize(("scenario", "turns"), [("conversation", 4), ("long", 8), ("repeat", 2), ("unique", 1)])
async def test_records_say_which_turn_they_are(scenario: str, turns: int) -> None:
    records = await run_load(Load(SCENARIOS[scenario], 1, 1, "seed"), Service().open_talk)

    assert [record.turn for record in records] == list(range(turns))


async def test_one_bad_answer_leaves_no_figures() -> None:
    with pytest.raises(LoadFailed, match="BadAnswer: nothing came"):
        await run_load(Load(SCENARIOS["unique"], 2, 5, "seed"), Service(fails_at=3).open_talk)


async def test_warming_up_shows_a_picture_that_the_load_does_not_show() -> None:
    service = await run("unique")
    warm = Service()
    await warm_up(Load(SCENARIOS["unique"], 2, 2, "seed"), warm.open_talk)

    assert shown(warm)[0] not in shown(service)


def test_pictures_follow_from_their_key() -> None:
    assert picture("a/0/1") == picture("a/0/1")
    assert picture("a/0/1") != picture("a/1/0")
    assert picture("a", side_px=64) != picture("a")


def test_loads_of_other_seeds_show_other_pictures() -> None:
    keys = [Load(SCENARIOS["same"], 1, 1, seed).picture_key(0, 0) for seed in ("a", "b")]

    assert len({hashlib.sha256(picture(key or "")).digest() for key in keys}) == 2
