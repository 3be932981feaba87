"""The page by keyboard, by screen reader, on a phone, in light and dark."""

from __future__ import annotations

import asyncio
from pathlib import Path

import axe_playwright_python
import pytest
from browser.stage import Server, Stage, open_stage
from ingress.bench import picture
from playwright.async_api import Browser, expect

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator, Gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RICH = (
    "# Title\n\nText with `code` and [a link](https://example.com/).\n\n| a | b |\n|---|---|\n| c | d |\n\n```\n"
    + "x" * 500
)
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


async def violations(stage: Stage) -> list[str]:
    await stage.page.evaluate(AXE + "; null")
    found = await stage.page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


async def fill(stage: Stage) -> None:
    """A page with all that it can show at a time."""
    stage.server.models["fake"].text = RICH
    await stage.choose(picture())
    await stage.ask("What is it?")
    await stage.choose(picture())
    await stage.by("question").fill("More?")


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
async def test_axe_finds_nothing(server: Server, browser: Browser, colours: str, size: str) -> None:
    options: dict[str, object] = {"color_scheme": colours, **(PHONE if size == "phone" else {})}
    async with open_stage(server, browser, **options) as stage:
        await stage.open()
        assert await violations(stage) == []
        await fill(stage)
        assert await violations(stage) == []
        server.models["fake"].generator = FakeGenerator(failure=Overloaded("all places are taken", retry_after_s=1))
        await stage.by("question").press("Enter")
        await expect(stage.by("problem")).to_be_visible()
        await stage.page.keyboard.press("Alt+C")
        assert await violations(stage) == []
        await stage.page.get_by_role("button", name="Delete “What is it?”").click()
        assert await violations(stage) == []
        await stage.by("keep").click()
        await stage.page.keyboard.press("Escape")
        await stage.page.keyboard.press("Alt+K")
        assert await violations(stage) == []


async def test_everything_by_keyboard(stage: Stage) -> None:
    keys = stage.page.keyboard
    await keys.type("first")
    await keys.press("Shift+Enter")
    await keys.type("line")
    await keys.press("Enter")
    await expect(stage.questions).to_have_text(["first line"])  # expect reads a new line as a space
    await expect(stage.answers).to_contain_text('line".')
    await expect(stage.page.locator("#list .title")).to_have_count(1)
    await keys.press("Alt+N")
    await expect(stage.questions).to_have_count(0)
    gate = Gate(after_chunks=2)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await keys.type("second")
    await keys.press("Enter")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await expect(stage.answers).to_have_text("You asked:")
    await keys.press("Escape")
    await expect(stage.page.locator("article.assistant .note")).to_contain_text("stopped")
    await expect(stage.page.locator("#list .title")).to_have_count(2)
    await keys.press("Alt+C")
    await expect(stage.page.locator("#list a[aria-current]")).to_be_focused()
    for _ in range(2):  # over its delete button to the next chat
        await keys.press("Tab")
    await keys.press("Enter")
    await expect(stage.questions).to_contain_text(["first"])
    await keys.press("Tab")
    await keys.press("Enter")  # its delete button
    await expect(stage.by("keep")).to_be_focused()
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(stage.page.locator("#list .title")).to_have_text(["second"])
    await keys.press("Alt+Q")
    await expect(stage.by("question")).to_be_focused()
    await keys.press("Alt+K")
    await expect(stage.by("help")).to_be_visible()
    await keys.press("Escape")
    await expect(stage.by("help")).to_be_hidden()
    async with stage.page.expect_file_chooser():
        await keys.press("Alt+P")


async def test_the_first_stop_skips_to_the_question(stage: Stage) -> None:
    await stage.ask("Hello")
    address = stage.page.url
    await stage.page.evaluate("document.activeElement.blur()")
    await stage.by("skip").focus()
    await stage.page.keyboard.press("Enter")
    await expect(stage.by("question")).to_be_focused()
    assert stage.page.url == address


async def test_the_focus_is_always_seen(stage: Stage) -> None:
    await stage.ask("Hello")
    await stage.by("skip").focus()
    seen = set()
    for _ in range(16):
        await stage.page.keyboard.press("Tab")
        name, is_outlined = await stage.page.evaluate(
            """() => {
                const active = document.activeElement;
                const box = active.closest(".box:has(textarea:focus-visible)") ?? active;
                const name = active === document.body ? "" : active.id || active.textContent;
                return [name, getComputedStyle(box).outlineStyle !== "none"];
            }"""
        )
        assert is_outlined or not name, name
        seen.add(name)
    assert {"new", "theme", "keys", "main", "question", "choose", "send", "Copy"} <= seen


async def test_what_a_screen_reader_is_told(stage: Stage) -> None:
    gate = Gate(after_chunks=2)
    stage.server.models["fake"].generator = FakeGenerator(gate=gate)
    await stage.type("Hello there")
    log, status = stage.page.get_by_role("log"), stage.page.get_by_role("status")
    await asyncio.wait_for(gate.reached.wait(), 10)
    await expect(stage.answers).to_have_text("You asked:")
    await expect(log).not_to_contain_text("You asked")  # not piece by piece
    await expect(status).to_have_text("")
    gate.opened.set()
    await expect(log).to_contain_text('You asked: "Hello there".')
    stage.server.models["fake"].generator = FakeGenerator(failure=Overloaded("all places are taken"))
    await stage.type("Hello")
    await expect(stage.page.get_by_role("alert")).to_contain_text("All places are taken.")
    for role, name in [("navigation", "Chats"), ("main", "Conversation"), ("form", "Your question")]:
        await expect(stage.page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]


async def test_a_phone(server: Server, browser: Browser) -> None:
    async with open_stage(server, browser, **PHONE) as stage:
        await stage.open()
        await expect(stage.by("chats")).to_be_hidden()
        await expect(stage.by("camera")).to_be_visible()
        await fill(stage)
        await _assert_fits(stage)
        for button in ("menu", "again", "choose", "camera", "send"):
            box = await stage.by(button).bounding_box()
            assert box is not None
            assert box["height"] >= 44, button
        await stage.by("menu").tap()
        await expect(stage.by("chats")).to_be_visible()
        await _assert_fits(stage)
        await stage.page.locator("#list a").tap()
        await expect(stage.by("chats")).to_be_hidden()
        await stage.page.set_viewport_size({"width": 360, "height": 300})  # the keyboard has come up
        await expect(stage.by("send")).to_be_in_viewport()
        await expect(stage.by("question")).to_be_in_viewport()
        assert stage.problems == []


async def _assert_fits(stage: Stage) -> None:
    widths = await stage.page.evaluate(
        "['html', 'body', '#main', '#form', 'header'].map((s) => document.querySelector(s))"
        ".map((e) => [e.scrollWidth, e.clientWidth])"
    )
    assert all(scroll <= client for scroll, client in widths), widths


async def test_light_and_dark(server: Server, browser: Browser) -> None:
    async def is_dark(stage: Stage) -> bool:
        colour = await stage.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return colour == "rgb(21, 23, 28)"

    for system in ("light", "dark"):
        async with open_stage(server, browser, color_scheme=system) as stage:
            await stage.open()
            assert await is_dark(stage) is (system == "dark")
            other = "light" if system == "dark" else "dark"
            await stage.by("theme").select_option(other)
            assert await is_dark(stage) is (other == "dark")
            await stage.page.reload()
            assert await is_dark(stage) is (other == "dark")
            await expect(stage.by("theme")).to_have_value(other)
            await stage.by("theme").select_option("")
            assert await is_dark(stage) is (system == "dark")
