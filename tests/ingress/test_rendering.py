"""POST /ui/markdown: several texts at once, its limits, and the event loop beside it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from ingress.bench import Bench, error_of

from deployments.errors import Overloaded
from deployments.ingress import rendering
from deployments.ingress.app import openapi_document
from deployments.ingress.rendering import MAX_CHARS, MAX_TEXTS, MAX_WAITING, Workshop

PAGE_SIDE = Path(rendering.__file__).parent / "ui" / "markdown.js"


async def test_texts_come_back_in_their_order(bench: Bench) -> None:
    reply = await bench.client.post("/ui/markdown", json={"texts": ["*a*", "", "b"]})
    assert (reply.status_code, reply.json()) == (200, {"html": ["<p><em>a</em></p>\n", "", "<p>b</p>\n"]})


@pytest.mark.parametrize(
    "texts", [["x" * (MAX_CHARS + 1)], ["x" * MAX_CHARS, "x"], [""] * (MAX_TEXTS + 1), "x", [1], ["\ud800"]]
)
async def test_what_is_refused(bench: Bench, texts: object) -> None:
    body = json.dumps({"texts": texts})  # httpx would not write half a surrogate pair
    reply = await bench.client.post("/ui/markdown", content=body, headers={"Content-Type": "application/json"})
    error_of(reply, 422, "invalid_request")


async def test_what_is_just_allowed(bench: Bench) -> None:
    for texts in (["x" * MAX_CHARS], [""] * MAX_TEXTS):
        reply = await bench.client.post("/ui/markdown", json={"texts": texts})
        assert len(reply.json()["html"]) == len(texts)


async def test_a_text_that_takes_too_long_is_left_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_CPU_S", 0.05)
    reply = await bench.client.post("/ui/markdown", json={"texts": ["fine", "![" * 20_000]})
    assert reply.json() == {"html": ["<p>fine</p>\n", None]}


async def test_one_at_a_time_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, threads = threading.Event(), set()

    def wait(texts: Sequence[str], max_cpu_s: float) -> list[str | None]:
        threads.add(threading.get_ident())
        assert opened.wait(10)
        return list(texts)

    monkeypatch.setattr(rendering, "to_html", wait)
    workshop = Workshop()
    waiting = [asyncio.create_task(workshop.render([str(number)])) for number in range(MAX_WAITING)]
    await asyncio.sleep(0)  # they have begun
    with pytest.raises(Overloaded):
        await workshop.render(["one too many"])
    opened.set()
    assert await asyncio.gather(*waiting) == [[str(number)] for number in range(MAX_WAITING)]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert await workshop.render(["again"]) == ["again"]
    workshop.threads.shutdown()


def test_the_page_knows_the_limits() -> None:
    assert f"[MAX_TEXTS, MAX_CHARS] = [{MAX_TEXTS}, {MAX_CHARS:_}]" in PAGE_SIDE.read_text()


def test_it_is_not_in_the_document() -> None:
    assert not any(path.startswith("/ui") for path in openapi_document()["paths"])
