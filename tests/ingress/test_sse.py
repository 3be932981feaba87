"""POST /chat with stream: the events, their order, and errors before and in mid-stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingress.bench import Bench, BuildBench, error_of, parse_events, picture
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Message, Send

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator
from deployments.ingress.sse import EventStream, encode_event, encode_text, open_events
from deployments.ingress.turns import TurnChunk, TurnEvent


def without_timings(reply: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in reply.items() if key not in ("timings", "session_id")}


async def test_events_join_to_the_plain_reply(bench: Bench) -> None:
    plain = (await bench.ask("Was ist das?\n\nΩ\u2028")).json()
    reply = await bench.ask("Was ist das?\n\nΩ\u2028", stream=True)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    assert "content-length" not in reply.headers
    events = list(parse_events(reply.text))
    assert [name for name, _ in events] == ["start", *["chunk"] * (len(events) - 2), "done"]
    start, *chunks, done = (data for _, data in events)
    assert start == {"session_id": done["session_id"], "model": "fake"}
    assert all(set(chunk) == {"text"} for chunk in chunks)
    assert "".join(str(chunk["text"]) for chunk in chunks) == done["response"] == plain["response"]
    assert set(done) == set(plain)
    assert without_timings(done) == without_timings(plain)


class Piece(BaseModel):
    text: str


@given(st.text() | st.text(alphabet=st.characters(max_codepoint=0xFF)))
def test_a_piece_of_text_is_encoded_as_any_other_event(text: str) -> None:
    assert encode_text("chunk", text, "7") == encode_event("chunk", Piece(text=text), "7")


async def test_an_answer_of_one_word(bench: Bench) -> None:
    reply = await bench.ask(stream=True, max_new_tokens=1)
    assert [name for name, _ in parse_events(reply.text)] == ["start", "chunk", "done"]


async def test_an_empty_answer(bench: Bench) -> None:
    reply = await bench.ask(stream=True, stop="You")
    (start, _), (done, data) = parse_events(reply.text)
    assert (start, done, data["response"]) == ("start", "done", "")


async def test_forms_stream_too(bench: Bench) -> None:
    reply = await bench.client.post("/chat", data={"message": "Hello", "stream": "true"}, files={"image": picture()})
    assert list(parse_events(reply.text))[-1][1]["has_image"] is True


async def test_the_accept_header_plays_no_part(bench: Bench) -> None:
    reply = await bench.client.post("/chat", json={"message": "Hello"}, headers={"accept": "text/event-stream"})
    assert reply.headers["content-type"] == "application/json"


async def test_an_error_in_mid_stream_is_the_last_event(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("no more room", "message"), fail_after_chunks=2))
    reply = await bench.ask(stream=True, session_id="s")
    assert reply.status_code == 200
    events = list(parse_events(reply.text))
    assert [name for name, _ in events] == ["start", "chunk", "chunk", "error"]
    assert events[-1][1] == {
        "error": {
            "code": "overloaded",
            "message": "no more room",
            "param": "message",
            "request_id": reply.headers["x-request-id"],
        }
    }
    error_of(await bench.client.get("/chat/history/s"), 404, "session_not_found")
    assert (await bench.ask(session_id="s", model="other")).json()["conversation_length"] == 2


async def test_an_unforeseen_error_in_mid_stream_tells_no_details(
    build_bench: BuildBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench = build_bench(FakeGenerator(failure=ValueError("secret detail"), fail_after_chunks=1))
    reply = await bench.ask(stream=True)
    assert list(parse_events(reply.text))[-1][1]["error"]["code"] == "internal_error"  # type: ignore[index]
    assert "secret detail" not in reply.text
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [(Overloaded("full", None, 2), 503, "overloaded"), (ValueError("secret detail"), 500, "internal_error")],
)
async def test_errors_before_the_first_text_are_statuses(
    build_bench: BuildBench, failure: Exception, status: int, code: str
) -> None:
    bench = build_bench(FakeGenerator(failure=failure))
    for stream in (True, False):
        reply = await bench.ask(stream=stream)
        error_of(reply, status, code)
        assert "secret detail" not in reply.text


async def test_errors_of_opening_are_statuses(bench: Bench) -> None:
    error_of(await bench.ask(stream=True, model="none"), 400, "unknown_model")
    error_of(await bench.ask(stream=True, max_new_tokens=10_000), 400, "invalid_request")


# ------------------------------------------------------------------------------------- EventStream


async def never_leaving() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def broken_send(message: Message) -> None:
    if message["type"] == "http.response.body":
        raise OSError("the connection is closed")


async def hanging_send(message: Message) -> None:
    if message["type"] == "http.response.body":
        await asyncio.Event().wait()


@pytest.mark.parametrize("send", [broken_send, hanging_send])
async def test_a_client_that_takes_nothing_closes_the_turn(send: Send) -> None:
    closed = []

    async def events() -> AsyncGenerator[TurnEvent, None]:
        try:
            while True:
                yield TurnChunk("x")
        finally:
            closed.append(True)

    running = events()
    opening = await open_events(running)
    with pytest.raises(ClientDisconnect):
        await EventStream(opening, running, lambda event: b"data: x\n\n", send_timeout_s=0.01)(
            {"type": "http"}, never_leaving, send
        )
    assert closed == [True]
