"""Asking in the page: answers that stream in, models, pictures, Markdown, stopping, errors."""

from __future__ import annotations

import asyncio

import pytest
from browser.stage import Stage
from ingress.bench import picture
from playwright.async_api import expect

from deployments.errors import ImageTooLarge, Overloaded, PartUnavailable
from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


async def test_a_question_and_its_answer(stage: Stage) -> None:
    await expect(stage.by("question")).to_be_focused()
    await stage.ask("Hello there")
    await expect(stage.questions).to_have_text(["Hello there"])
    await expect(stage.answers).to_have_text(['You asked: "Hello there".'])
    note = stage.page.locator("article.assistant .note")
    # 2 words at 1 and 4 at 4 for a million.
    await expect(note).to_contain_text("fake · 2 tokens read · 4 written · cost 0.000018 · first after")
    await expect(stage.by("question")).to_have_value("")
    await expect(stage.by("question")).to_be_focused()
    await stage.ask("And again")
    await expect(stage.answers.nth(1)).to_contain_text("I remember 2 messages before this one.")


async def test_words_are_seen_as_they_come(stage: Stage) -> None:
    gate = Gate(after_chunks=3)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.type("one two three")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await expect(stage.answers).to_have_text('You asked: "one')
    await expect(stage.by("stop")).to_be_visible()
    await expect(stage.by("send")).to_be_hidden()
    gate.opened.set()
    await expect(stage.answers).to_have_text('You asked: "one two three".')
    await expect(stage.by("send")).to_be_visible()


async def test_another_model(stage: Stage) -> None:
    await stage.ask("Hello")
    await stage.by("model").select_option("other")
    await stage.ask("Hello")
    note = stage.page.locator("article.assistant .note")
    await expect(note.nth(0)).to_contain_text("fake · ")
    await expect(note.nth(1)).to_contain_text("other · ")
    await expect(note.nth(1)).not_to_contain_text("cost")  # it has no prices
    await stage.page.reload()
    await expect(stage.by("model")).to_have_value("other")  # the chat goes on with its own
    await stage.by("new").click()
    await expect(stage.by("model")).to_have_value("fake")


async def test_a_picture_by_file(stage: Stage) -> None:
    await stage.choose(picture(size=(60, 40)))
    await expect(stage.by("preview")).to_be_visible()
    await expect(stage.by("name")).to_have_text("photo.png")
    await stage.ask("What is it?")
    await expect(stage.by("picture")).to_be_hidden()
    await expect(stage.answers).to_contain_text("The picture has 60 x 40 pixels.")
    await expect(stage.page.locator("article.user img")).to_have_js_property("naturalWidth", 60)
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("16 of them for pictures")
    await stage.ask("And now?")
    await expect(stage.answers.nth(1)).to_contain_text("The picture has 60 x 40 pixels.")


@pytest.mark.parametrize("way", ["paste", "drop"])
async def test_a_picture_by_another_way(stage: Stage, way: str) -> None:
    data = await stage.page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "given.png", { type: "image/png" }));
            return transfer;
        }""",
        list(picture(size=(31, 32))),
    )
    if way == "paste":
        event = "(t) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: t, bubbles: true}))"
        await data.evaluate(event)
    else:
        for name in ("dragover", "drop"):
            await stage.page.dispatch_event("#main", name, {"dataTransfer": data})
            await expect(stage.by("drop")).to_be_visible(visible=name == "dragover")
    await expect(stage.by("name")).to_have_text("given.png")
    await stage.ask("What is it?")
    await expect(stage.answers).to_contain_text("The picture has 31 x 32 pixels.")


async def test_a_picture_that_is_taken_back(stage: Stage) -> None:
    await stage.choose(picture())
    await stage.by("remove").click()
    await expect(stage.by("picture")).to_be_hidden()
    await stage.ask("Hello")
    await expect(stage.answers).to_have_text(['You asked: "Hello".'])


async def test_a_broken_picture_shows_before_the_question_is_asked(stage: Stage) -> None:
    await stage.by("question").fill("What is it?")
    await stage.choose(picture()[:60])
    await expect(stage.by("problem")).to_contain_text("Choose another picture.")
    await expect(stage.by("picture")).to_be_hidden()
    await expect(stage.by("question")).to_have_value("What is it?")
    await stage.choose(b"Dear diary", "diary.txt", "text/plain")
    await expect(stage.by("problem")).to_contain_text("“diary.txt” is not a picture.")
    await stage.choose(picture())
    await expect(stage.by("problem")).to_be_hidden()


async def test_stopping_in_the_middle_keeps_what_came(stage: Stage) -> None:
    gate = Gate(after_chunks=3)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.type("one two three")
    await expect(stage.answers).to_have_text('You asked: "one')
    await stage.by("stop").click()
    await asyncio.wait_for(gate.left.wait(), 10)
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("stopped")
    await expect(stage.answers).to_have_text('You asked: "one')
    await expect(stage.by("question")).to_be_focused()
    await stage.page.reload()
    await expect(stage.answers).to_have_text(['You asked: "one'])


async def test_stopping_before_the_first_word(stage: Stage) -> None:
    gate = Gate()
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.choose(picture())
    await stage.type("one two three")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await expect(stage.by("status")).to_have_text("Thinking…")
    await stage.page.keyboard.press("Escape")
    await asyncio.wait_for(gate.left.wait(), 10)
    await expect(stage.by("question")).to_have_value("one two three")
    await expect(stage.by("status")).to_contain_text("Stopped.")
    await expect(stage.by("picture")).to_be_visible()
    await expect(stage.questions).to_have_count(0)
    stage.server.models["fake"].generator = FakeGenerator()
    await stage.by("question").press("Enter")
    await expect(stage.answers).to_contain_text("The picture has 40 x 30 pixels.")
    await expect(stage.answers).not_to_contain_text("remember")  # the session was as it had been


async def test_stopping_before_the_server_has_answered(stage: Stage) -> None:
    await stage.page.route("**/chat", lambda route: None)  # it never gets there
    await stage.type("Hello")
    await expect(stage.by("stop")).to_be_visible()
    await stage.by("stop").click()
    await expect(stage.by("question")).to_have_value("Hello")
    await expect(stage.questions).to_have_count(0)
    await stage.page.unroute("**/chat")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Overloaded("all places are taken", retry_after_s=7), "All places are taken."),
        (PartUnavailable("the generator is being replaced"), "A part of the service is being replaced."),
        (ImageTooLarge("the picture has too many pixels"), "Make the picture smaller"),
        (RuntimeError("secret"), "Something went wrong on our side"),
    ],
)
async def test_errors_say_what_to_do(stage: Stage, failure: Exception, words: str) -> None:
    stage.server.models["fake"].generator = FakeGenerator(failure=failure)
    await stage.type("Hello")
    await expect(stage.by("problem")).to_contain_text(words)
    await expect(stage.by("problem")).not_to_contain_text("secret")
    await expect(stage.by("question")).to_have_value("Hello")
    await expect(stage.questions).to_have_count(0)
    stage.server.models["fake"].generator = FakeGenerator()
    if isinstance(failure, ImageTooLarge):
        await expect(stage.by("retry")).to_be_hidden()
        return
    await stage.by("retry").click()
    await expect(stage.answers).to_have_text(['You asked: "Hello".'])
    await expect(stage.by("problem")).to_be_hidden()


async def test_an_error_in_the_middle_of_an_answer(stage: Stage) -> None:
    stage.server.models["fake"].generator = FakeGenerator(failure=RuntimeError("x"), fail_after_chunks=2)
    await stage.type("one two three")
    await expect(stage.by("problem")).to_contain_text("Something went wrong on our side")
    await expect(stage.questions).to_have_count(0)
    await expect(stage.by("question")).to_have_value("one two three")


async def test_a_server_that_is_not_there(stage: Stage) -> None:
    await stage.context.set_offline(True)
    await stage.type("Hello")
    await expect(stage.by("problem")).to_contain_text("The server cannot be reached. Check the connection")
    await stage.context.set_offline(False)
    await stage.by("retry").click()
    await expect(stage.answers).to_have_text(['You asked: "Hello".'])


async def test_nothing_is_asked_without_words(stage: Stage) -> None:
    await stage.choose(picture())
    await stage.type("   ")
    await expect(stage.by("status")).to_have_text("Write a question about the picture first.")
    await expect(stage.questions).to_have_count(0)


async def test_an_answer_is_copied_as_it_was_written(stage: Stage) -> None:
    await stage.context.grant_permissions(["clipboard-read", "clipboard-write"])
    stage.server.models["fake"].text = "**bold** and `code`"
    await stage.ask("Hello")
    await stage.page.get_by_role("button", name="Copy").click()
    await expect(stage.page.get_by_role("button", name="Copied")).to_be_visible()
    assert await stage.page.evaluate("navigator.clipboard.readText()") == "**bold** and `code`"
