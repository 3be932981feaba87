"""Markdown as HTML: what it becomes, what never comes through, and that hostile texts are given up in time."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from browser.attacks import ATTACKS

from deployments.ingress.markdown import TAGS, to_html

ATTRIBUTES = {"a": {"href", "target", "rel"}, "ol": {"start"}, "pre": {"tabindex"}}


class Elements(HTMLParser):
    """Tags and attributes, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def render(text: str) -> str:
    (html,) = to_html([text], 60)
    assert html is not None
    return html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# A\n## B\n###### C", "<h3>A</h3>\n<h4>B</h4>\n<h6>C</h6>\n"),
        ("one\ntwo", "<p>one<br>\ntwo</p>\n"),
        ("**a** *b* ~~c~~ `d`", "<p><strong>a</strong> <em>b</em> <s>c</s> <code>d</code></p>\n"),
        ("- [ ] a\n- [x] b\n- [c]", "<ul>\n<li>☐ a</li>\n<li>☑ b</li>\n<li>[c]</li>\n</ul>\n"),
        ("[ ] a", "<p>[ ] a</p>\n"),
        ("3. c", '<ol start="3">\n<li>c</li>\n</ol>\n'),
        ("```py\n1 < 2\n```", '<pre tabindex="0"><code>1 &lt; 2\n</code></pre>\n'),
        ("<b>bold</b>", "<p>&lt;b&gt;bold&lt;/b&gt;</p>\n"),
        ("model.py and 10.0.0.1", "<p>model.py and 10.0.0.1</p>\n"),
        ("", ""),
    ],
)
def test_what_becomes_what(text: str, html: str) -> None:
    assert render(text) == html


@pytest.mark.parametrize(
    ("text", "address", "words"),
    [
        ("[site](https://example.com/?a=1&b=2)", "https://example.com/?a=1&amp;b=2", "site"),
        ("https://example.org", "https://example.org", "https://example.org"),
        ("<http://example.org/>", "http://example.org/", "http://example.org/"),
        ("cat@example.org", "mailto:cat@example.org", "cat@example.org"),
        ("![a *cat*](https://example.com/c.png)", "https://example.com/c.png", "a cat"),
        ("![](https://example.com/c.png)", "https://example.com/c.png", "https://example.com/c.png"),
    ],
)
def test_links_and_pictures_are_links_to_other_sites(text: str, address: str, words: str) -> None:
    link = f'<a href="{address}" target="_blank" rel="noopener noreferrer">{words}</a>'
    assert render(text) == f"<p>{link}</p>\n"


@pytest.mark.parametrize(
    "address", ["/chat", "//evil.example", "chat.html", "#x", "ftp://x.example/", "blob:x", "tel:1"]
)
def test_other_addresses_lead_nowhere(address: str) -> None:
    assert "href" not in render(f"[x]({address}) ![y]({address})")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_inert(attack: str) -> None:
    for tag, attributes in Elements(render(attack)).found:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES.get(tag, set())
        assert (attributes.get("href") or "https:").startswith(("https:", "http:", "mailto:"))


def repeat(text: str, num_chars: int = 64_000) -> str:
    return text * (num_chars // len(text))


HOSTILE = {
    "stars": repeat("*a **b "),
    "brackets": repeat("["),
    "pictures": repeat("!["),
    "links in links": repeat("[a](<"),
    "quotes": repeat(">"),
    "lists in lists": "".join("  " * depth + "- a\n" for depth in range(250)),
    "ticks": "".join("`" * number + " " for number in range(1, 350)),
    "table": "|a" * 1500 + "\n" + "|-" * 1500 + "\n" + "|\n" * 29_000,
    "colons": repeat("://"),
    "bare links": repeat("http://a.b/("),
    "one long link": "http://a.b/" + repeat("("),
    "mails": repeat("a@b.c"),
    "entities": repeat("&amp;"),
    "definitions": "".join(f"[a{number}]: /u\n" for number in range(5000)),
    "broken tags": repeat("<!--"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_end_in_time(text: str) -> None:
    began_s = time.thread_time()
    to_html([text], 0.2)
    assert time.thread_time() - began_s < 4  # a table's cells are made in one go; the rest stops at once, or is linear


def test_the_time_is_for_all_texts_together() -> None:
    assert to_html(["fine", repeat("!["), "fine"], 0.05) == ["<p>fine</p>\n", None, None]
