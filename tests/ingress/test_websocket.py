"""WS /ws/chat: turns, stop, resume, ping; what is refused, and how sockets end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from ingress.bench import Bench, BuildBench, data_url, picture, serving, stored
from ingress.socket_bench import PATIENCE_S, client_of, connected, text_of
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deployments.errors import Overloaded
from deployments.fakes import FakeGenerator, Gate
from deployments.ingress import chat_socket

ANSWER = 'You asked: "Hello".'

# ------------------------------------------------------------------------------------- turns


async def test_the_events_are_those_of_a_stream(bench: Bench) -> None:
    plain = (await bench.ask()).json()
    async with client_of(bench) as client:
        events = await client.ask(id="mine")
    start, *chunks, done = events
    assert [event["event"] for event in events] == ["start", *["chunk"] * len(chunks), "done"]
    assert all(event["tag"] == "mine" for event in events)
    stream_id = start["data"]["stream_id"]
    assert [event["id"] for event in events] == [f"{stream_id}.{index}" for index in range(len(events))]
    assert text_of(events) == ANSWER == done["data"]["response"]
    assert set(done["data"]) == set(plain)
    assert done["data"]["usage"] == plain["usage"]


async def test_turns_of_one_session_one_after_another(bench: Bench) -> None:
    async with client_of(bench) as client:
        await client.send("ask", message="one", session_id="s", id="1")
        await client.send("ask", message="two", session_id="s", id="2")
        events = [*await client.until("done"), *await client.until("done")]
    lengths = [event["data"]["conversation_length"] for event in events if event["event"] == "done"]
    assert lengths == [2, 4]
    assert [event["tag"] for event in events] == sorted(event["tag"] for event in events)


async def test_turns_of_several_sessions_at_once(build_bench: BuildBench) -> None:
    gate = Gate(1)
    bench = build_bench(FakeGenerator(gate=gate))
    async with client_of(bench) as client:
        await client.send("ask", message="one", session_id="a", id="1")
        await gate.reached.wait()
        events = await client.ask("two", session_id="b", id="2", model="other")
        assert [event for event in events if event["tag"] == "2"][-1]["event"] == "done"
        gate.opened.set()
        assert (await client.until("done"))[-1]["tag"] == "1"


async def test_pictures_and_settings(bench: Bench) -> None:
    async with client_of(bench) as client:
        events = await client.ask("What?", image=data_url(picture()), logprobs=1, max_new_tokens=4)
        done = events[-1]["data"]
        assert done["has_image"]
        assert done["finish_reason"] == "length"
        assert len(done["logprobs"]) == 4
        again = await client.ask("And now?", session_id=done["session_id"])
        assert again[-1]["data"]["has_image"]


async def test_ping(bench: Bench) -> None:
    async with client_of(bench) as client:
        await client.send("ping", id="p")
        assert await client.next() == {"event": "pong", "tag": "p"}
        await client.send("ping")
        assert await client.next() == {"event": "pong"}


async def test_a_failure_is_an_event_and_the_socket_stays(build_bench: BuildBench) -> None:
    bench = build_bench(FakeGenerator(failure=Overloaded("full", "message"), fail_after_chunks=1))
    async with client_of(bench) as client:
        events = await client.ask(session_id="s", id="x")
        assert [event["event"] for event in events] == ["start", "chunk", "error"]
        assert events[-1]["data"]["error"]["code"] == "overloaded"
        assert events[-1]["tag"] == "x"
        assert text_of(await client.ask(session_id="s", model="other")) == ANSWER


# ------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("num_words", [0, 1, 2])
async def test_stopped(build_bench: BuildBench, num_words: int, named: bool) -> None:
    gate = Gate(num_words)
    bench = build_bench(FakeGenerator(gate=gate))
    async with client_of(bench) as client:
        await client.send("ask", message="Hello", session_id="s")
        start = await client.next()
        await gate.reached.wait()
        await client.send("stop", **({"stream_id": start["data"]["stream_id"]} if named else {}))
        events = await client.until("done")
        assert events[-1]["data"]["finish_reason"] == "cancelled"
        assert events[-1]["data"]["response"] == text_of(events) == "".join(["You", " asked:"][:num_words])
        assert await stored(bench) == (2 if num_words else 0)


async def test_stopped_before_the_turn_is_open(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with client_of(bench) as client:
        first = asyncio.create_task(bench.ask(session_id="s"))
        await gate.reached.wait()
        await client.send("ask", message="Hello", session_id="s", model="other")
        await client.send("stop")
        await client.send("ping")
        assert await client.next() == {"event": "pong"}
        gate.opened.set()
        await first
        events = await client.until("done")
        assert [event["event"] for event in events] == ["start", "done"]
        assert events[-1]["data"]["finish_reason"] == "cancelled"
        assert await stored(bench) == 2


@pytest.mark.parametrize("index", range(4))
async def test_lost_at_any_event_and_resumed_on_another_socket(build_bench: BuildBench, index: int) -> None:
    gate = Gate(index)
    bench = build_bench(FakeGenerator(gate=gate) if index < 3 else None)
    async with serving(bench.app) as address:
        async with connected(address) as first:
            await first.send("ask", message="Hello", session_id="s")
            seen = [await first.next() for _ in range(index + 1)]
        stream_id = seen[0]["data"]["stream_id"]
        gate.opened.set()
        async with connected(address) as second:
            await second.send("resume", stream_id=stream_id, after=index, id="r")
            rest = await second.until("done")
    assert [event["id"] for event in seen + rest] == [f"{stream_id}.{number}" for number in range(5)]
    assert text_of(seen + rest) == ANSWER
    assert await stored(bench) == 2


async def test_what_cannot_be_resumed_or_stopped(bench: Bench) -> None:
    async with client_of(bench) as client:
        stream_id = (await client.ask())[0]["data"]["stream_id"]
        await client.send("resume", stream_id=stream_id, after=4)
        assert (await client.error())["param"] == "after"
        await client.send("resume", stream_id=stream_id, after=17)
        assert (await client.error())["code"] == "invalid_request"
        for type in ("resume", "stop"):
            await client.send(type, stream_id="none")
            assert (await client.error())["code"] == "stream_not_found"
        await client.send("stop")
        assert "no turn is under way" in (await client.error())["message"]


async def test_stop_must_name_one_of_several(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with client_of(bench) as client:
        for session_id in "ab":
            await client.send("ask", message="Hello", session_id=session_id)
            await client.next()
        await client.send("stop")
        assert "name one" in (await client.error())["message"]
        gate.opened.set()


# ------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("text", "param", "words"),
    [
        ("{", None, "the message is not JSON"),
        ("[]", None, "the message must be a JSON object"),
        ("{}", "type", "must be one of ask, stop, resume, ping"),
        ('{"type":"sing"}', "type", "'sing'"),
        ('{"type":7}', "type", "must be one of"),
        ('{"type":"ask"}', "message", "required"),
        ('{"type":"ask","message":""}', "message", "empty"),
        ('{"type":"ask","message":"a","message":"b"}', "message", "twice"),
        ('{"type":"ask","message":"a","stream":true}', "stream", "unknown field"),
        ('{"type":"ask","message":"a","temperature":"1"}', "temperature", "number"),
        ('{"type":"ask","message":"a","image":"http://x/y.png"}', "image", "data URL"),
        ('{"type":"ask","message":"a","model":"none"}', "model", "unknown model"),
        ('{"type":"ask","message":"\\ud800"}', "message", "surrogate"),
        ('{"type":"ping","id":7}', "id", "string"),
        ('{"type":"ping","id":"\\ud800"}', "id", "string"),
        ('{"type":"resume","stream_id":"a","after":-2}', "after", "-1"),
        ('{"type":"resume","stream_id":"\\ud800"}', "stream_id", "there is no stream"),
        ('{"type":"stop","stream_id":"\\ud800"}', "stream_id", "there is no stream"),
    ],
)
async def test_bad_messages_are_events_and_the_socket_stays(
    bench: Bench, text: str, param: str | None, words: str
) -> None:
    async with client_of(bench) as client:
        await client.socket.send(text)
        error = await client.error()
        assert error["param"] == param, error
        assert words in error["message"]
        assert error["request_id"].startswith("req-")
        assert text_of(await client.ask()) == ANSWER


async def test_errors_carry_the_tag(bench: Bench) -> None:
    async with client_of(bench) as client:
        await client.send("ask", id="mine", wrong=1)
        assert (await client.next())["tag"] == "mine"


async def test_binary_messages_are_refused(bench: Bench) -> None:
    async with client_of(bench) as client:
        await client.socket.send(b'{"type":"ping"}')
        assert "binary" in (await client.error())["message"]
        await client.send("ping")
        assert await client.next() == {"event": "pong"}


async def test_a_message_that_is_too_large_closes_the_socket(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_body_bytes": 1000})
    async with client_of(bench) as client:
        await client.send("ask", message="a" * 1000)
        with pytest.raises(ConnectionClosed) as caught:
            await client.next()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        assert "ingress.max_body_bytes" in caught.value.rcvd.reason


@pytest.mark.parametrize("origin", ["http://elsewhere.example", "null", "http://[", "http://localhost"])
async def test_pages_from_elsewhere_may_not_open_sockets(bench: Bench, origin: str) -> None:
    async with serving(bench.app) as address:
        with pytest.raises(InvalidStatus) as caught:
            async with connected(address, origin=origin):
                raise AssertionError
        assert caught.value.response.status_code == 403
        assert json.loads(caught.value.response.body)["error"]["code"] == "origin_refused"
        async with connected(address, origin=address) as client:
            assert text_of(await client.ask()) == ANSWER
    assert bench.turns.metrics.snapshot()["ingress_sockets.refused"] == 1


@pytest.mark.parametrize(
    ("host", "origin", "is_let_in"),
    [
        ("retina.example", "https://retina.example", True),
        ("retina.example:443", "https://retina.example", True),
        ("Retina.example:80", "http://retina.example", True),
        ("retina.example", "https://retina.example:443", True),
        ("retina.example:8443", "https://retina.example", False),
        ("retina.example:443", "http://retina.example", False),
        ("retina.example:80", "http://retina.example.evil", False),
    ],
)
async def test_a_proxy_may_name_the_schemes_own_port(bench: Bench, host: str, origin: str, is_let_in: bool) -> None:
    async with serving(bench.app) as address:
        name, port = address.removeprefix("http://").split(":")
        there: dict[str, Any] = {"host": name, "port": int(port), "origin": origin}
        if is_let_in:
            async with connected(f"http://{host}", **there) as client:
                assert text_of(await client.ask()) == ANSWER
        else:
            with pytest.raises(InvalidStatus, match="403"):
                async with connected(f"http://{host}", **there):
                    raise AssertionError


async def test_no_more_than_max_sockets(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_sockets": 1})
    async with serving(bench.app) as address:
        async with connected(address):
            assert (await bench.client.get("/-/ingress")).json()["open_sockets"] == 1
            with pytest.raises(InvalidStatus) as caught:
                async with connected(address):
                    raise AssertionError
            assert caught.value.response.status_code == 503
            assert caught.value.response.headers["Retry-After"] == "5"
        async with asyncio.timeout(10):
            while bench.services.sockets.count:  # noqa: ASYNC110 - it shows no event
                await asyncio.sleep(0.01)
        async with connected(address) as client:
            assert text_of(await client.ask()) == ANSWER


async def test_no_more_than_so_many_turns_at_once(build_bench: BuildBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_socket, "MAX_TURNS", 2)
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate))
    async with client_of(bench) as client:
        for session_id in "ab":
            await client.send("ask", message="Hello", session_id=session_id)
            await client.next()
        await client.send("ask", message="Hello", session_id="c")
        assert (await client.error())["code"] == "overloaded"
        gate.opened.set()


# ------------------------------------------------------------------------------------- ends


async def test_an_idle_socket_is_closed(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"socket_idle_s": 0.05})
    async with client_of(bench) as client:
        with pytest.raises(ConnectionClosed) as caught:
            await client.next()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
    assert bench.turns.metrics.snapshot()["ingress_sockets.idle"] == 1


async def test_a_socket_with_a_turn_is_not_idle(build_bench: BuildBench) -> None:
    gate = Gate()
    bench = build_bench(FakeGenerator(gate=gate), ingress={"socket_idle_s": 0.05})
    async with client_of(bench) as client:
        await client.send("ask", message="Hello")
        await gate.reached.wait()
        await asyncio.sleep(0.2)
        gate.opened.set()
        assert text_of(await client.until("done")) == ANSWER


async def test_a_client_that_does_not_read_is_dropped(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"turn_timeout_s": 0.5, "max_message_chars": 10_000_000})
    async with (
        serving(bench.app) as address,
        connected(address, max_queue=1, max_size=None, compression=None, close_timeout=0.1) as client,
    ):
        long = (await client.ask("x" * 1_000_000, max_new_tokens=1))[0]["data"]["stream_id"]
        async with asyncio.timeout(PATIENCE_S):
            while "ingress_sockets.slow" not in bench.turns.metrics.snapshot():
                await client.send("resume", stream_id=long)
                await asyncio.sleep(0.01)
        assert (await bench.client.get(f"/chat/streams/{long}")).status_code == 200
