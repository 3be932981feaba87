"""Markdown as HTML that a page may show: no HTML of the writer's, no pictures, links that lead to other sites only."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

TAGS = frozenset(
    {"a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong"}
    | {"table", "tbody", "td", "th", "thead", "tr", "ul"}
)
SCHEMES = frozenset({"http", "https", "mailto"})
MAX_BARE_LINKS = 200  # finding links that are not marked as such takes the square of their number
NUM_HEADINGS_TAKEN = 2  # a page's own headings come before an answer's
BOXES = {"[ ] ": "☐ ", "[x] ": "☑ ", "[X] ": "☑ "}


class TooSlow(Exception):
    """Its writer has set out to keep us busy. Never leaves this file."""


def to_html(texts: Sequence[str], max_cpu_s: float) -> list[str | None]:
    """Of each text; None for those that would take more of this thread's time than all together may."""
    until_s = time.thread_time() + max_cpu_s
    return [_to_html(text, until_s) for text in texts]


def _to_html(text: str, until_s: float) -> str | None:
    finds_links = text.count(":") + text.count("@") <= MAX_BARE_LINKS
    try:
        html = _parser(finds_links=finds_links).render(text, {"until_s": until_s})
    except TooSlow:
        return None
    return _sanitizer().clean(html)


@functools.cache
def _sanitizer() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=set(TAGS),
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes=set(SCHEMES),
        url_relative="deny",
        link_rel="noopener noreferrer",
        # What is wider than its column scrolls, by keys as well.
        set_tag_attribute_values={"a": {"target": "_blank"}, "pre": {"tabindex": "0"}},
    )


@functools.cache
def _parser(*, finds_links: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": finds_links})
    parser.enable(["table", "strikethrough"])
    parser.core.ruler.before("inline", "adapt", _adapt)
    parser.block.ruler.before("table", "watch", _watch_block)
    parser.inline.ruler.before("text", "watch", _watch_inline)
    parser.add_render_rule("image", _render_image)
    if finds_links:
        parser.enable("linkify")
        assert parser.linkify is not None
        parser.linkify.set({"fuzzy_link": False, "fuzzy_ip": False})  # model.py is no site
    return parser


def _adapt(state: StateCore) -> None:
    """Headings below the page's own, and boxes of to-do lists as signs."""
    for place, token in enumerate(state.tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + NUM_HEADINGS_TAKEN, 6)}"
        elif token.type == "inline" and _begins_item(state.tokens, place):
            token.content = BOXES.get(token.content[:4], token.content[:4]) + token.content[4:]


def _begins_item(tokens: Sequence[Token], place: int) -> bool:
    return place >= 2 and tokens[place - 2].type == "list_item_open"


def _render_image(
    renderer: RendererHTML, tokens: Sequence[Token], place: int, options: OptionsDict, env: EnvType
) -> str:
    """A picture from elsewhere would tell its server who reads this: it is a link."""
    token = tokens[place]
    address = str(token.attrs["src"])
    words = renderer.renderInlineAsText(token.children or [], options, env) or address
    return f'<a href="{escapeHtml(address)}">{escapeHtml(words)}</a>'


def _watch_block(state: StateBlock, startLine: int, endLine: int, silent: bool) -> bool:
    _check_time(state.env)
    return False


def _watch_inline(state: StateInline, silent: bool) -> bool:
    _check_time(state.env)
    return False


def _check_time(env: EnvType) -> None:
    if time.thread_time() > env["until_s"]:
        raise TooSlow
