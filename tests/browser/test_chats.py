"""Several chats in the page: the list, histories with their picture, links and back, deletion."""

from __future__ import annotations

import asyncio
import re

import pytest
from browser.stage import Stage
from ingress.bench import picture
from playwright.async_api import Locator, expect

from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def titles(stage: Stage) -> Locator:
    return stage.page.locator("#list .title")


async def begin(stage: Stage, question: str) -> None:
    await stage.by("new").click()
    await stage.ask(question)


async def test_a_chat_gets_an_address_and_a_place_in_the_list(stage: Stage) -> None:
    await expect(stage.by("nochats")).to_be_visible()
    await stage.ask("What is it?")
    await expect(titles(stage)).to_have_text(["What is it?"])
    await expect(stage.page).to_have_url(re.compile(r"/#chat=[0-9a-f]{32}$"))
    await expect(stage.page).to_have_title("What is it? · Retina")
    await expect(stage.page.locator("#list [aria-current]")).to_have_count(1)
    await stage.page.reload()
    await expect(stage.questions).to_have_text(["What is it?"])
    await expect(stage.answers).to_have_text(['You asked: "What is it?".'])
    await stage.ask("And now?")
    await expect(stage.answers.nth(1)).to_contain_text("I remember 2 messages")


async def test_a_history_with_its_picture(stage: Stage) -> None:
    await stage.choose(picture(size=(60, 40)))
    await stage.ask("What is it?")
    await stage.ask("Really?")
    await stage.page.reload()
    await expect(stage.questions).to_have_text(["What is it?", "Really?"])
    image = stage.page.locator("article.user img")
    await expect(image).to_have_count(1)
    await expect(image).to_have_js_property("naturalWidth", 60)
    await expect(image).to_have_attribute("alt", "The picture of this question")
    await expect(titles(stage).locator("+ .note")).to_contain_text("with a picture")


async def test_what_the_answers_took_is_remembered(stage: Stage) -> None:
    await stage.ask("first")
    await stage.ask("second")
    notes = stage.page.locator("article.assistant .note")
    said = await notes.all_text_contents()
    session = stage.page.url.partition("#chat=")[2]
    form = {"message": "from elsewhere", "session_id": session}
    await stage.page.evaluate("(form) => fetch('chat', {method: 'POST', body: new URLSearchParams(form)})", form)
    await stage.page.reload()
    await expect(stage.answers).to_have_count(3)
    assert await notes.all_text_contents() == said
    await expect(stage.page.locator("article.assistant").last.locator(".note")).to_have_count(0)


async def test_going_from_chat_to_chat_and_back(stage: Stage) -> None:
    await stage.ask("first")
    await begin(stage, "second")
    await expect(titles(stage)).to_have_text(["second", "first"])
    await titles(stage).nth(1).click()
    await expect(stage.questions).to_have_text(["first"])
    await expect(stage.page.locator("#list [aria-current]")).to_contain_text("first")
    await stage.page.go_back()
    await expect(stage.questions).to_have_text(["second"])
    await stage.page.go_forward()
    await expect(stage.questions).to_have_text(["first"])
    await stage.by("new").click()
    await expect(stage.questions).to_have_count(0)
    await expect(stage.by("welcome")).to_be_visible()
    await expect(stage.page).to_have_url(stage.address + "/")
    await stage.page.go_back()
    await expect(stage.questions).to_have_text(["first"])


async def test_a_link_to_a_chat(stage: Stage) -> None:
    await stage.ask("shared")
    other = await stage.context.new_page()
    await other.goto(stage.page.url)
    await expect(other.locator("article.user .text")).to_have_text(["shared"])
    await other.close()


async def test_a_chat_that_is_not_there(stage: Stage) -> None:
    await stage.page.goto(stage.address + "/#chat=never-was")
    await stage.page.reload()
    await expect(stage.by("problem")).to_contain_text("It may have been deleted. Begin a new chat.")


async def test_deletion_is_confirmed(stage: Stage) -> None:
    await stage.ask("first")
    await begin(stage, "second")
    await stage.page.get_by_role("button", name="Delete “first”").click()
    await expect(stage.by("doomed")).to_have_text("first")
    await expect(stage.by("keep")).to_be_focused()
    await stage.by("keep").click()
    await expect(stage.by("deletion")).to_be_hidden()
    await stage.page.get_by_role("button", name="Delete “first”").click()
    await stage.by("delete").click()
    await expect(titles(stage)).to_have_text(["second"])
    await expect(stage.questions).to_have_text(["second"])  # the open one stays open
    await stage.page.get_by_role("button", name="Delete “second”").click()
    await stage.by("delete").click()
    await expect(titles(stage)).to_have_count(0)
    await expect(stage.by("welcome")).to_be_visible()
    await expect(stage.page).to_have_url(stage.address + "/")
    listed = await stage.page.evaluate("fetch('chat/sessions').then((reply) => reply.json())")
    assert listed["sessions"] == []


async def test_an_answer_goes_on_while_another_chat_is_open(stage: Stage) -> None:
    await stage.ask("first")
    gate = Gate(after_chunks=3)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.by("new").click()
    await stage.type("slow slow slow")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await titles(stage).first.click()
    await expect(stage.questions).to_have_text(["first"])
    await expect(stage.by("send")).to_be_visible()  # this chat is free
    stage.server.models["fake"].generator = FakeGenerator()
    await stage.ask("meanwhile")
    await stage.page.go_back()
    await expect(stage.answers).to_have_text('You asked: "slow')
    await expect(stage.by("stop")).to_be_visible()
    gate.opened.set()
    await expect(stage.answers).to_have_text(['You asked: "slow slow slow".'])
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("fake · ")
    await expect(titles(stage)).to_have_text(["slow slow slow", "first"])


async def test_a_question_that_failed_while_another_chat_was_open(stage: Stage) -> None:
    await stage.ask("first")
    gate = Gate(after_chunks=1)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate, failure=RuntimeError("x"), fail_after_chunks=2)
    await stage.by("new").click()
    await stage.type("slow slow slow")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await titles(stage).first.click()
    await expect(stage.questions).to_have_text(["first"])
    gate.opened.set()
    await asyncio.wait_for(gate.left.wait(), 10)
    await expect(stage.by("problem")).to_be_hidden()
    await stage.page.go_back()
    await expect(stage.by("problem")).to_contain_text("Something went wrong on our side")
    await expect(stage.by("question")).to_have_value("slow slow slow")


async def test_a_long_list_is_shown_in_part(stage: Stage) -> None:
    for number in range(51):
        form = {"message": f"question {number}", "session_id": f"s{number}"}
        await stage.page.evaluate("(form) => fetch('chat', {method: 'POST', body: new URLSearchParams(form)})", form)
    await stage.page.reload()
    await expect(titles(stage)).to_have_count(50)
    await stage.by("more").click()
    await expect(titles(stage)).to_have_count(51)
    await expect(stage.by("more")).to_be_hidden()
