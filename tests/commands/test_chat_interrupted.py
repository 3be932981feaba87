"""Ctrl-C in `retina chat`, and connections that break: with programs and servers of their own."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
from commands.stage import BreakingProxy, begin, config_file, end, gate_models, retina, served

from deployments.fakes import Gate
from deployments.ingress.tenants import PUBLIC_TENANT

pytestmark = pytest.mark.slow


async def _has_come(process: asyncio.subprocess.Process, words: bytes) -> bytes:
    assert process.stdout is not None
    seen = b""
    async with asyncio.timeout(30):
        while words not in seen:
            piece = await process.stdout.read(100)
            assert piece, seen
            seen += piece
    return seen


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """After three words."""
    gate = Gate(after_chunks=3)
    gate_models(monkeypatch, gate)
    return gate


async def test_the_first_interrupt_stops_the_answer_and_the_conversation_goes_on(tmp_path: Path, gate: Gate) -> None:
    async with served(config_file(tmp_path)) as (address, graph):
        process = await begin(tmp_path, "chat", "--server", address, "-s", "mine")
        assert process.stdin is not None
        process.stdin.write(b"one two three\n")
        seen = await _has_come(process, b"one")
        await gate.reached.wait()
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(gate.left.wait(), 30)  # the generator was stopped, not only its reader
        gate.opened.set()
        ended = await end(process, b"again\n/history\n")
        kept = await graph.router.history(PUBLIC_TENANT, "mine")
    assert ended.code == 0, ended.err
    assert "stopped" in ended.err
    assert 'You asked: "again".' in ended.out
    assert [message.text for message in kept][:2] == ["one two three", 'You asked: "one']
    assert seen.decode().startswith('You asked: "one')


async def test_a_second_interrupt_leaves(tmp_path: Path, gate: Gate) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        process = await begin(tmp_path, "chat", "--server", address)
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"one two three\n")
        await _has_come(process, b"one")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            while b"stopped" not in await process.stderr.readline():
                pass
        process.send_signal(signal.SIGINT)  # while it waits for a line
        ended = await end(process)
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.err


async def test_one_question_that_is_interrupted_before_its_first_word(tmp_path: Path, gate: Gate) -> None:
    gate.after_chunks = 0
    async with served(config_file(tmp_path)) as (address, graph):
        process = await begin(tmp_path, "chat", "--server", address, "-q", "hello", "-s", "mine")
        await asyncio.wait_for(gate.reached.wait(), 30)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(gate.left.wait(), 30)
        ended = await end(process)
        sessions = await graph.router.sessions(PUBLIC_TENANT, 10)
    assert ended.code == 130, ended.err
    assert "stopped" in ended.err
    assert not sessions


async def test_an_answer_whose_connection_breaks_comes_whole(tmp_path: Path, loaded: list[str]) -> None:
    question = "a long question of many words so that there is something to break"
    async with served(config_file(tmp_path)) as (address, graph):
        proxy = BreakingProxy(address, 700, 600, 600)
        async with proxy.open() as through:
            ended = await retina(tmp_path, "chat", "--server", through, "-q", question, "-s", "mine", "--timings")
        kept = await graph.router.history(PUBLIC_TENANT, "mine")
    assert ended.code == 0, ended.err
    assert ended.out == f'You asked: "{question}".\n'
    assert len(kept) == 2  # one turn, however many connections
    assert proxy.num_connections > 2


async def test_a_server_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    ended = await retina(tmp_path, "chat", "--server", "http://127.0.0.1:9", "-q", "hello")
    assert ended.code == 1
    assert ended.out == ""
    [line] = ended.err.splitlines()
    assert "http://127.0.0.1:9" in line
    assert "retina serve" in line


async def test_json_of_one_question_is_the_services_own_reply(tmp_path: Path, loaded: list[str]) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        ended = await retina(tmp_path, "chat", "--server", address, "-q", "hello", "--json")
    reply = json.loads(ended.out)
    assert (reply["response"], reply["finish_reason"], reply["conversation_length"]) == (
        'You asked: "hello".',
        "stop",
        2,
    )
