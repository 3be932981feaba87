"""What models and people write stays text: nothing of it runs, and nothing is fetched from elsewhere."""

from __future__ import annotations

import pytest
from browser.attacks import ATTACKS
from browser.stage import Stage
from playwright.async_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PLAIN = "a blockquote br code em h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul".upper().split()


@pytest.mark.parametrize("where", ["answer", "question"])
async def test_attacks_are_inert(stage: Stage, where: str) -> None:
    text = "\n\n".join(ATTACKS)
    if where == "answer":
        stage.server.models["fake"].text = text
    await stage.ask(text if where == "question" else "Hello")
    await _assert_inert(stage)
    await stage.page.reload()  # from the history as well
    await stage.whole(1)
    await _assert_inert(stage)


async def _assert_inert(stage: Stage) -> None:
    for link in await stage.page.locator("article .text a").all():
        if (href := await link.get_attribute("href")) is None:
            continue  # it leads nowhere
        assert href.startswith(("https://", "http://", "mailto:"))
        assert await link.get_attribute("target") == "_blank"
        assert await link.get_attribute("rel") == "noopener noreferrer"
        await link.hover()
    found = await stage.page.evaluate(
        """() => [...document.querySelectorAll("article .text *")].map((e) => [e.tagName, e.getAttributeNames()])"""
    )
    assert {tag for tag, _ in found} <= set(PLAIN)
    assert {name for _, names in found for name in names} <= {"href", "target", "rel", "start", "tabindex"}
    assert await stage.page.evaluate("window.hit") is None
    assert not any("evil.example" in url for url in stage.requests)
    await expect(stage.page.locator("article.assistant .text")).to_contain_text("<script>window.hit = 1</script>")


async def test_markdown_is_shown_as_such(stage: Stage) -> None:
    stage.server.models["fake"].text = (
        "# Title\n\n**bold** and *soft*, `code`\nnew line\n\n- one\n- two\n\n3. three\n\n"
        "| a | b |\n|---|---|\n| c | d |\n\n~~gone~~\n\n- [x] done\n\n"
        "```py\nx = 1 < 2\n```\n\n[site](https://example.com/?a=1&b=2) https://example.org ![cat](https://example.com/c.png)"
    )
    await stage.ask("Hello")
    text = stage.answers
    for selector, content in {
        "h3": "Title",
        "strong": "bold",
        "em": "soft",
        "ul:nth-of-type(1) li:last-child": "two",
        "ul:nth-of-type(2) li": "☑ done",
        "s": "gone",
        "ol[start='3'] li": "three",
        "td:last-child": "d",
        "pre code": "x = 1 < 2\n",
        "a[href='https://example.com/?a=1&b=2']": "site",
        "a[href='https://example.org']": "https://example.org",
        "a[href='https://example.com/c.png']": "cat",
    }.items():
        await expect(text.locator(selector)).to_have_text(content, use_inner_text=False)
    await expect(text.locator("br")).to_have_count(1)
    await expect(text.locator("img")).to_have_count(0)


async def test_strings_become_markup_by_one_policy_only(stage: Stage) -> None:
    with pytest.raises(Exception, match="TrustedHTML"):
        await stage.page.evaluate("document.body.innerHTML = '<b>x</b>'")
    with pytest.raises(Exception, match="TrustedScriptURL"):
        await stage.page.evaluate("document.createElement('script').src = 'x.js'")
    with pytest.raises(Exception, match="Policy"):
        await stage.page.evaluate("trustedTypes.createPolicy('mine', {})")
    with pytest.raises(Exception, match="Policy"):  # taken already
        await stage.page.evaluate("trustedTypes.createPolicy('retina-markdown', {})")
    stage.problems.clear()


async def test_nothing_leaves_the_origin_from_loading_to_the_answer(stage: Stage) -> None:
    await stage.ask("Hello")
    assert len(stage.requests) > 10
    assert {url.split("/")[2] for url in stage.requests} == {stage.address.removeprefix("http://")}
