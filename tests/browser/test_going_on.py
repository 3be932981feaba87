"""An answer survives a reload and a broken connection, and every piece of it is shown once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from browser.stage import Cable, Server, Stage, open_cable, open_page, open_stage
from ingress.bench import picture
from playwright.async_api import Browser, BrowserContext, Route, expect

from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

QUESTION = " ".join(f"word-{number}" for number in range(40))
ANSWER = f'You asked: "{QUESTION}".'
FIRST_WORDS = 'You asked: "word-0 word-1'


async def hold(stage: Stage, after_chunks: int) -> Gate:
    """The fake model's next answers wait there."""
    gate = Gate(after_chunks=after_chunks)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    return gate


async def test_a_reload_in_the_middle_of_an_answer(stage: Stage) -> None:
    gate = await hold(stage, 4)
    await stage.choose(picture(size=(60, 40)))
    await stage.type(QUESTION)
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    await stage.page.reload()
    await expect(stage.questions).to_have_text([QUESTION])
    await expect(stage.page.locator("article.user img")).to_have_js_property("naturalWidth", 60)
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    await expect(stage.by("stop")).to_be_visible()
    gate.opened.set()
    await expect(stage.answers).to_have_text([f"{ANSWER} The picture has 60 x 40 pixels."])
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("cost")
    await expect(stage.questions).to_have_text([QUESTION])
    await stage.page.reload()
    await expect(stage.questions).to_have_text([QUESTION])  # from the history now, and once
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("cost")
    await expect(stage.answers).to_have_text([f"{ANSWER} The picture has 60 x 40 pixels."])


async def test_a_reload_before_the_first_word(stage: Stage) -> None:
    gate = await hold(stage, 0)
    await stage.type(QUESTION)
    await asyncio.wait_for(gate.reached.wait(), 10)
    await expect(stage.by("status")).to_have_text("Thinking…")
    await stage.page.reload()
    await expect(stage.by("status")).to_have_text("Thinking…")
    gate.opened.set()
    await expect(stage.answers).to_have_text([ANSWER])


async def test_stopping_after_a_reload(stage: Stage) -> None:
    gate = await hold(stage, 4)
    await stage.type(QUESTION)
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    await stage.page.reload()
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    await stage.page.keyboard.press("Escape")
    await asyncio.wait_for(gate.left.wait(), 10)
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("stopped")
    await expect(stage.answers).to_have_text([FIRST_WORDS])


async def test_an_answer_that_came_while_the_page_was_closed(stage: Stage) -> None:
    gate = await hold(stage, 4)
    await stage.type(QUESTION)
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    address = stage.page.url
    await stage.page.goto("about:blank")
    gate.opened.set()
    await asyncio.wait_for(gate.left.wait(), 10)
    await stage.page.goto(address)
    await expect(stage.answers).to_have_text([ANSWER])
    await expect(stage.questions).to_have_text([QUESTION])
    await expect(stage.by("send")).to_be_visible()
    stage.requests[:] = [url for url in stage.requests if not url.startswith("about:")]


async def test_a_stream_that_is_forgotten(stage: Stage) -> None:
    await stage.ask("first")
    session = stage.page.url.partition("#chat=")[2]
    lost = {session: {"question": "second", "streamId": "stream-0", "askedMs": time.time() * 1000}}
    remember = "(lost) => localStorage.setItem('retina.under_way', JSON.stringify(lost))"
    await stage.page.evaluate(remember, lost)
    await stage.page.reload()
    await expect(stage.by("problem")).to_contain_text("Ask again.")
    await expect(stage.by("question")).to_have_value("second")
    await expect(stage.questions).to_have_text(["first"])
    lost[session]["question"] = "first"  # what the history has is answered
    await stage.by("question").fill("")
    await stage.page.evaluate(remember, lost)
    await stage.page.reload()
    await expect(stage.questions).to_have_text(["first"])
    await expect(stage.by("send")).to_be_visible()
    await expect(stage.by("problem")).to_be_hidden()
    await expect(stage.by("question")).to_have_value("")


# ------------------------------------------------------------------------------------- broken connections


@pytest_asyncio.fixture(loop_scope="module")
async def cabled(server: Server, context: BrowserContext) -> AsyncIterator[tuple[Cable, Stage]]:
    async with open_cable(server) as (cable, address), open_page(server, context, address) as stage:
        await stage.open()
        yield cable, stage


@pytest.mark.parametrize("after_chunks", [0, 1, 4, 20])
async def test_a_connection_that_breaks(cabled: tuple[Cable, Stage], after_chunks: int) -> None:
    cable, stage = cabled
    gate = await hold(stage, after_chunks)
    await stage.type(QUESTION)
    await asyncio.wait_for(gate.reached.wait(), 10)
    if after_chunks:
        await expect(stage.answers).to_have_text(" ".join(ANSWER.split(" ")[:after_chunks]))
    else:
        await expect(stage.by("status")).to_have_text("Thinking…")
    cable.cut()
    await expect(stage.by("status")).to_have_text("The connection broke off. Trying to go on…")
    gate.opened.set()  # the answer is finished while nobody reads
    await asyncio.wait_for(gate.left.wait(), 10)
    cable.mend()
    await expect(stage.answers).to_have_text([ANSWER])
    await expect(stage.by("status")).to_have_text("")
    assert sum("/chat/streams/" in url for url in stage.requests) >= 2


async def test_a_connection_that_breaks_again_and_again(cabled: tuple[Cable, Stage]) -> None:
    """After a few hundred bytes each time, wherever in an event that is."""
    cable, stage = cabled
    stage.server.models["fake"].generator = FakeGenerator(word_delay_s=0.005)
    cable.cut_every = 700
    await stage.type(QUESTION)
    await expect(stage.answers).to_have_text([ANSWER], timeout=30_000)
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("42 written", timeout=30_000)
    assert cable.num_cuts >= 3


async def test_stopping_while_the_connection_is_broken(cabled: tuple[Cable, Stage]) -> None:
    cable, stage = cabled
    gate = await hold(stage, 4)
    await stage.type(QUESTION)
    await expect(stage.answers).to_have_text(FIRST_WORDS)
    cable.cut()
    await expect(stage.by("status")).to_have_text("The connection broke off. Trying to go on…")
    await stage.by("stop").click()
    await expect(stage.by("problem")).to_contain_text("The server cannot be reached.")
    cable.mend()
    await stage.by("retry").click()
    await asyncio.wait_for(gate.left.wait(), 10)
    await expect(stage.answers).to_have_text([FIRST_WORDS])
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("stopped")


@pytest.mark.parametrize("got_it", [True, False])
async def test_a_connection_that_breaks_before_the_question_is_confirmed(stage: Stage, got_it: bool) -> None:
    async def break_off(route: Route) -> None:
        if got_it:
            await route.fetch()  # until the answer is whole
        await route.abort()

    await stage.ask("first")
    await stage.page.route("**/chat", break_off)
    await stage.type("second")
    await expect(stage.by("problem")).to_contain_text("before the server said that it has your question")
    await expect(stage.by("question")).to_have_value("second")
    await stage.page.unroute("**/chat")
    await stage.by("retry").click()
    await expect(stage.questions).to_have_text(["first", "second"])
    await expect(stage.answers.last).to_contain_text("I remember 2 messages")  # asked once
    await expect(stage.by("question")).to_have_value("")
    await expect(stage.by("problem")).to_be_hidden()
    await stage.page.reload()
    await expect(stage.questions).to_have_text(["first", "second"])


async def test_a_question_as_before_is_asked_again(stage: Stage) -> None:
    await stage.ask("same")
    await stage.page.route("**/chat", lambda route: route.abort())
    await stage.type("same")
    await expect(stage.by("problem")).to_contain_text("Try again: if it was answered meanwhile")
    await stage.page.unroute("**/chat")
    await stage.by("retry").click()
    await expect(stage.questions).to_have_text(["same", "same"])
    await expect(stage.answers).to_have_count(2)


async def test_a_browser_that_stores_nothing(server: Server, browser: Browser) -> None:
    async with open_stage(server, browser) as stage:
        refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no'); }});"
        await stage.context.add_init_script(refuse)
        await stage.open()
        await stage.by("theme").select_option("dark")
        await stage.ask("Hello")
        await expect(stage.answers).to_have_text(['You asked: "Hello".'])
        assert stage.problems == []
