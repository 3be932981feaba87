"""POST /ui/markdown: texts of the chat page as HTML, made in one thread beside the event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter
from pydantic import AfterValidator, Field

from deployments.errors import Overloaded
from deployments.ingress.body import Body
from deployments.ingress.markdown import to_html

router = APIRouter(prefix="/ui", include_in_schema=False)  # the page's own, and no promise to others

MAX_TEXTS = 100
MAX_CHARS = 64_000  # of all texts; the page knows both
MAX_CPU_S = 0.5  # for one request; what texts of people take is far less
MAX_WAITING = 32
RETRY_AFTER_S = 1.0


def _check_texts(texts: Sequence[str]) -> Sequence[str]:
    num_chars = sum(map(len, texts))
    if num_chars > MAX_CHARS:
        raise ValueError(f"the texts have {num_chars} characters; at most {MAX_CHARS} are rendered at a time")
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise ValueError("a text holds half of a surrogate pair, which is no character")
    return texts


class MarkdownRequest(Body):
    texts: Annotated[list[str], Field(max_length=MAX_TEXTS), AfterValidator(_check_texts)]


class MarkdownReply(Body):
    html: list[str | None]  # None: it takes too long, and is shown as it was written


@router.post("/markdown")
async def render_markdown(asked: MarkdownRequest) -> MarkdownReply:
    return MarkdownReply(html=await _workshop().render(asked.texts))


@dataclass(slots=True)
class Workshop:
    """One thread, so that whatever people send takes one core at most."""

    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="markdown"))
    num_waiting: int = 0

    async def render(self, texts: Sequence[str]) -> list[str | None]:
        """Raises Overloaded."""
        if self.num_waiting >= MAX_WAITING:
            raise Overloaded("too many texts wait to be rendered", retry_after_s=RETRY_AFTER_S)
        self.num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, to_html, texts, MAX_CPU_S)
        finally:
            self.num_waiting -= 1


@functools.cache
def _workshop() -> Workshop:
    return Workshop()
