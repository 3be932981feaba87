"""The routes for one picture with stream: the events of each, their order, and that they join to the plain reply."""

from __future__ import annotations

import httpx
import pytest
from ingress.bench import Bench, BuildBench, parse_events, picture, post_form
from ingress.vision_bench import ASKED, post_all, upload

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator

PIECES = {"/caption": "chunk", "/query": "chunk", "/detect": "object", "/point": "point"}


def events_of(reply: httpx.Response) -> list[tuple[str, dict[str, object]]]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    return list(parse_events(reply.text))


def lasting(reply: dict[str, object]) -> dict[str, object]:
    """What two answers to the same request have in common."""
    return {key: value for key, value in reply.items() if key not in ("timings", "request_id")}


def joined(events: list[tuple[str, dict[str, object]]], name: str) -> str:
    return "".join(str(data["text"]) for kind, data in events if kind == name)


@pytest.mark.parametrize("path", ASKED)
async def test_events_join_to_the_plain_reply_in_each_encoding(bench: Bench, path: str) -> None:
    plain = (await post_all(bench, path, ASKED[path]))[0].json()
    for reply in await post_all(bench, path, {**ASKED[path], "stream": True}):
        events = events_of(reply)
        assert [name for name, _ in events] == ["start", *[PIECES[path]] * (len(events) - 2), "done"]
        assert len(events) > 2
        start, *pieces, done = (data for _, data in events)
        assert start == {"model": "fake", "image_id": plain["image_id"]}
        assert set(done) == set(plain)
        assert lasting(done) == lasting(plain)
        assert done["request_id"] == reply.headers["x-request-id"]
        assert set(done["timings"]) == set(plain["timings"])  # type: ignore[call-overload]
        if path in ("/caption", "/query"):
            assert all(set(piece) == {"text"} for piece in pieces)
            assert joined(events, "chunk") == done["caption" if path == "/caption" else "answer"]
        else:
            assert pieces == done["objects" if path == "/detect" else "points"]


async def test_thoughts_come_before_the_answer(bench: Bench) -> None:
    fields: dict[str, object] = {"question": "What is it?", "reasoning": True}
    plain = (await post_form(bench, fields, picture(), "/query")).json()
    events = events_of(await post_form(bench, {**fields, "stream": True}, picture(), "/query"))
    names = [name for name, _ in events]
    num_thoughts = names.count("thought")
    assert names == ["start", *["thought"] * num_thoughts, *["chunk"] * names.count("chunk"), "done"]
    assert joined(events, "thought") == plain["reasoning"]["text"]
    assert joined(events, "chunk") == plain["answer"]
    assert lasting(events[-1][1]) == lasting(plain)


async def test_a_question_without_a_picture(bench: Bench) -> None:
    events = events_of(await bench.client.post("/query", json={"question": "Why?", "stream": True}))
    assert events[0] == ("start", {"model": "fake", "image_id": None})
    assert events[-1][1]["image_id"] is None


@pytest.mark.parametrize("max_new_tokens", [1, 3])
async def test_answers_of_few_tokens(bench: Bench, max_new_tokens: int) -> None:
    fields = {"image_id": await upload(bench), "max_new_tokens": max_new_tokens, "stream": True}
    events = events_of(await bench.client.post("/caption", json=fields))
    assert [name for name, _ in events] == ["start", *["chunk"] * max_new_tokens, "done"]
    assert events[-1][1]["finish_reason"] == "length"


async def test_an_empty_answer(bench: Bench) -> None:
    fields = {"image_id": await upload(bench), "stop": "A", "stream": True}
    events = events_of(await bench.client.post("/caption", json=fields))
    assert [name for name, _ in events] == ["start", "done"]
    assert events[-1][1]["caption"] == ""


@pytest.mark.parametrize("path", ["/caption", "/query"])
async def test_an_error_in_mid_stream_is_the_last_event(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("no more room"), fail_after_chunks=2))
    reply = await post_form(bench, {**ASKED[path], "stream": True}, picture(), path)
    events = events_of(reply)
    assert [name for name, _ in events] == ["start", "chunk", "chunk", "error"]
    assert events[-1][1] == {
        "error": {
            "code": "overloaded",
            "message": "no more room",
            "param": None,
            "request_id": reply.headers["x-request-id"],
        }
    }


async def test_an_unforeseen_error_in_mid_stream_tells_no_details(
    build_bench: BuildBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = build_bench(FakeGenerator(failure=ValueError("secret detail"), fail_after_chunks=1))
    reply = await post_form(bench, {"stream": True}, picture(), "/caption")
    assert events_of(reply)[-1][1]["error"]["code"] == "internal_error"  # type: ignore[index]
    assert "secret detail" not in reply.text
    assert "secret detail" in caplog.text


async def test_the_accept_header_plays_no_part(bench: Bench) -> None:
    headers = {"accept": "text/event-stream"}
    reply = await bench.client.post("/query", json={"question": "Why?"}, headers=headers)
    assert reply.headers["content-type"] == "application/json"
