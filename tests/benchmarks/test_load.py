"""The load client over real sockets: against the graph with the fake model, and against servers that answer badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvicorn

from benchmarks import load as load_file
from benchmarks.in_process import GraphTalk
from benchmarks.load import Service, open_http
from benchmarks.summary import Record
from benchmarks.users import SCENARIOS, Load, LoadFailed, run_load, warm_up
from deployments.config import parse_config
from deployments.local import Graph, open_graph

GOOD = [
    {"choices": [{"delta": {"content": "A cat."}, "finish_reason": None}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}},
]


@contextlib.asynccontextmanager
async def serving(app: object) -> AsyncIterator[str]:
    """The application on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))  # type: ignore[arg-type]
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "the server ended before it began"
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def fake_graph(folder: Path) -> AsyncIterator[Graph]:
    config = {
        "data_dir": str(folder),
        "models": [{"name": "fake", "family": "fake"}],
        "images": {"store": "memory"},
        "session_router": {"store": "memory"},
    }
    async with open_graph(parse_config(config)) as graph:
        yield graph


def badly(events: list[object], status: int = 200) -> Callable[..., Awaitable[None]]:
    """An ASGI application that answers everything with these events."""

    async def answer(
        scope: dict[str, object], receive: Callable[..., Awaitable], send: Callable[..., Awaitable]
    ) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            continue
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": data})

    return answer


async def run(service: Service, scenario: str, users: int = 3, requests: int = 2) -> list[Record]:
    load = Load(SCENARIOS[scenario], users, requests, "seed", max_tokens=6)
    async with open_http(service) as open_talk:
        await warm_up(load, open_talk)
        return await run_load(load, open_talk)


@pytest.mark.parametrize(("scenario", "num_answers"), [("unique", 6), ("same", 6), ("text", 6), ("conversation", 24)])
async def test_the_fake_graph_answers_a_load(scenario: str, num_answers: int, tmp_path: Path) -> None:
    async with fake_graph(tmp_path) as graph, serving(graph.app()) as url:
        records = await run(Service(url, "retina", None), scenario)

    assert len(records) == num_answers
    for record in records:
        assert record.sent_s < record.times_s[0] <= record.times_s[-1] <= record.end_s
        assert 1 <= record.num_tokens <= 6


async def test_turns_of_a_conversation_are_one_session(tmp_path: Path) -> None:
    async with fake_graph(tmp_path) as graph, serving(graph.app()) as url:
        await run(Service(url, "retina", None), "conversation", users=2, requests=1)
        sessions = await graph.router.sessions(graph.tenant, 100)

    assert sorted(session.length for session in sessions) == [2, 8, 8]  # the first is the warm-up


async def test_the_same_load_runs_in_process(tmp_path: Path) -> None:
    async with fake_graph(tmp_path) as graph:
        load = Load(SCENARIOS["conversation"], 2, 1, "seed", max_tokens=6)
        records = await run_load(load, lambda: GraphTalk(graph))
        sessions = await graph.router.sessions(graph.tenant, 100)

    assert len(records) == 8
    assert [session.length for session in sessions] == [8, 8]


async def test_an_openai_service_answers_a_load() -> None:
    async with serving(badly(GOOD)) as url:
        records = await run(Service(url, "openai", "m"), "unique")

    assert [record.num_tokens for record in records] == [3] * 6


@pytest.mark.parametrize(
    ("events", "status", "reason"),
    [
        (GOOD, 503, "HTTP 503"),
        ([], 200, "without a finish_reason"),
        (GOOD[:2], 200, "without usage"),
        (GOOD[1:], 200, "no text"),
        ([{"error": {"message": "it broke"}}], 200, "it broke"),
    ],
)
async def test_a_service_that_answers_badly_gets_no_figures(events: list[object], status: int, reason: str) -> None:
    async with serving(badly(events, status)) as url, open_http(Service(url, "openai", "m")) as open_talk:
        with pytest.raises(LoadFailed, match=reason):
            await run_load(Load(SCENARIOS["text"], 2, 1, "seed"), open_talk)


def test_the_command_ends_with_an_error_when_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_file.main(["--url", "http://127.0.0.1:9", "--requests", "1"]) == 1

    printed = capsys.readouterr()
    assert "no figures" in printed.err
    assert printed.out == ""


def test_the_command_refuses_an_openai_service_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_file.main(["--url", "http://127.0.0.1:9", "--api", "openai"])

    assert "--api openai needs --model" in capsys.readouterr().err
