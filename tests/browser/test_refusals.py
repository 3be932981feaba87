"""What the page says when the server refuses, by its own limits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from browser.stage import open_page, open_server
from ingress.bench import picture
from playwright.async_api import BrowserContext, expect

from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"images": {"store": "memory", "max_image_bytes": 100}}, "Make the picture smaller, or choose another one."),
        ({"ingress": {"max_body_bytes": 200}}, "Make the picture or the question smaller."),
    ],
)
async def test_a_picture_that_is_too_large(
    tmp_path: Path, context: BrowserContext, sections: dict[str, dict[str, object]], words: str
) -> None:
    async with open_server(tmp_path, **sections) as server, open_page(server, context) as stage:
        await stage.open()
        async with stage.page.expect_response("**/images") as refused:
            await stage.choose(picture(size=(300, 300)))
        assert (await refused.value).status == 413
        await expect(stage.by("problem")).to_contain_text(words)
        await expect(stage.by("picture")).to_be_hidden()


async def test_a_question_that_is_too_long(tmp_path: Path, context: BrowserContext) -> None:
    sections = {"ingress": {"max_message_chars": 20, "streams": {"store": "memory"}}}
    async with open_server(tmp_path, **sections) as server, open_page(server, context) as stage:
        await stage.open()
        await stage.type("What is it, if anything at all?")
        await expect(stage.by("problem")).to_contain_text("Ask something shorter.")
        await expect(stage.by("question")).to_have_value("What is it, if anything at all?")
        await stage.by("dismiss").click()
        await expect(stage.by("problem")).to_be_hidden()
        await stage.by("question").fill("")
        await stage.ask("What is it?")


async def test_a_service_that_is_full(tmp_path: Path, context: BrowserContext) -> None:
    sections = {"ingress": {"streams": {"store": "memory", "max_streams": 1}}}
    async with open_server(tmp_path, **sections) as server, open_page(server, context) as stage:
        gate = Gate(after_chunks=1)
        server.models["fake"].generator = FakeGenerator(gate=gate)
        await stage.open()
        await stage.type("first")
        await asyncio.wait_for(gate.reached.wait(), 10)
        await stage.by("new").click()
        async with stage.page.expect_response("**/chat") as refused:
            await stage.type("second")
        reply = await refused.value
        assert reply.status == 503
        await expect(stage.by("problem")).to_contain_text(f"Try again in {reply.headers['retry-after']} s.")
        await expect(stage.by("question")).to_have_value("second")
        gate.opened.set()


async def test_a_chat_that_is_busy_in_another_tab(tmp_path: Path, context: BrowserContext) -> None:
    sections = {"session_router": {"store": "memory", "max_waiting_turns": 0}}
    async with open_server(tmp_path, **sections) as server, open_page(server, context) as stage:
        await stage.open()
        await stage.ask("first")
        other = await stage.context.new_page()
        await other.goto(stage.page.url)
        await expect(other.locator("article.assistant .text")).to_have_count(1)
        gate = Gate(after_chunks=1)
        server.models["fake"].generator = FakeGenerator(gate=gate)
        await stage.type("second")
        await asyncio.wait_for(gate.reached.wait(), 10)
        await other.locator("#question").fill("third")
        await other.locator("#question").press("Enter")
        await expect(other.locator("#problem")).to_contain_text(
            "Another question is being answered in this chat: wait for it. Try again in"
        )
        gate.opened.set()
        await expect(stage.by("send")).to_be_visible()
        await other.locator("#retry").click()
        await expect(other.locator("article.assistant .text").last).to_contain_text('"third"')
