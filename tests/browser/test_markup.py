"""Answers as markup: while they come in, in histories, and when the server does not make any."""

from __future__ import annotations

import asyncio
import re

import pytest
from browser.stage import Stage
from playwright.async_api import Route, expect

from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

ROUTE = "**/ui/markdown"


def num_rendered(stage: Stage) -> int:
    return sum(url.endswith("/ui/markdown") for url in stage.requests)


async def test_markup_while_the_answer_comes(stage: Stage) -> None:
    gate = Gate(after_chunks=4)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.type("**one** two **three four** five")
    await expect(stage.answers.locator("strong")).to_have_text(["one"])  # the rest is not there yet
    await expect(stage.answers).to_have_text('You asked: "one two')
    gate.opened.set()
    await expect(stage.answers).to_have_text('You asked: "one two three four five".')
    await expect(stage.answers.locator("strong")).to_have_text(["one", "three four"])


async def test_new_words_stand_where_they_belong(stage: Stage) -> None:
    gate = Gate(after_chunks=5)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    asked = asyncio.Event()

    async def answer_once(route: Route) -> None:
        """Whatever is asked later is not answered: new words stay plain."""
        if not asked.is_set():
            asked.set()
            await route.continue_()

    await stage.page.route(ROUTE, answer_once)
    await stage.type("x\n\n- one\n- **two** three four")
    await expect(stage.answers.locator("li strong")).to_have_text(["two"])
    gate.opened.set()
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("fake · ")
    await expect(stage.answers.locator("li").last).to_have_text('two three four".')
    await expect(stage.answers.locator("li .plain")).to_have_count(1)
    await stage.page.unroute(ROUTE)


async def test_few_requests_however_many_words(stage: Stage) -> None:
    stage.server.models["fake"].generator = FakeGenerator(word_delay_s=0.005)
    await stage.ask(" ".join(["word"] * 150))  # 0.75 s
    assert 1 <= num_rendered(stage) <= 8


async def test_late_markup_does_not_undo_the_end(stage: Stage) -> None:
    gate = Gate(after_chunks=3)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    held: asyncio.Queue[Route] = asyncio.Queue()
    await stage.page.route(ROUTE, held.put)
    await stage.type("one **two** three")
    first = await asyncio.wait_for(held.get(), 10)
    gate.opened.set()
    last = await asyncio.wait_for(held.get(), 10)
    await last.continue_()
    await expect(stage.answers.locator("strong")).to_have_text(["two"])
    async with stage.page.expect_response(ROUTE):
        await first.continue_()
    await expect(stage.answers).to_have_text(['You asked: "one two three".'])
    await stage.page.unroute(ROUTE)


async def test_without_markup_the_text_stays(stage: Stage) -> None:
    await stage.page.route(ROUTE, lambda route: route.fulfill(status=503))
    stage.server.models["fake"].text = "**bold**\n\n- one"
    await stage.ask("Hello")
    await expect(stage.answers).to_have_text(["**bold** - one"])
    await stage.page.reload()
    await stage.whole(1)
    await expect(stage.answers).to_have_text(["**bold** - one"])
    await stage.page.unroute(ROUTE)
    await stage.page.reload()
    await expect(stage.answers.locator("strong")).to_have_text(["bold"])


async def test_a_history_is_one_request(stage: Stage) -> None:
    stage.server.models["fake"].text = "*soft*"
    for number in range(3):
        await stage.ask(f"question {number}")
    stage.requests.clear()
    await stage.page.reload()
    await expect(stage.answers.locator("em")).to_have_text(["soft"] * 3)
    assert num_rendered(stage) == 1


async def test_texts_that_are_too_long_for_one_request(stage: Stage) -> None:
    for length in (40_000, 40_000, 70_000, 10):
        stage.server.models["fake"].text = "**b**" + "x" * length
        await stage.ask("Hello")
    stage.requests.clear()
    await stage.page.reload()
    await stage.whole(4)
    assert num_rendered(stage) == 3  # the longest is not asked for
    bold = [await answer.locator("strong").count() for answer in await stage.answers.all()]
    assert bold == [1, 1, 0, 1]
    await expect(stage.answers.nth(2)).to_have_text(re.compile(r"^\*\*b\*\*x+$"))
