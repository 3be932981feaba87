"""A stream that is broken anywhere, again and again, gives every event exactly once."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from commands.stage import BreakingProxy, config_file, served

from deployments.client.kept_stream import ComingBack
from deployments.client.service_client import ServiceClient
from deployments.errors import ServerUnreachable
from deployments.ingress.schemas import ChatReply, ChatRequest, ChunkEvent

QUESTION = "one two three four five six seven eight nine ten"
AT_ONCE = ComingBack(within_s=5, longest_wait_s=0.05)


@pytest.fixture(autouse=True)
def _fast(loaded: list[str]) -> None:
    """Models without delay."""


async def ask(address: str) -> tuple[str, ChatReply]:
    async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
        events = [event async for event in ServiceClient(http, AT_ONCE).stream_chat(ChatRequest(message=QUESTION))]
    done = events[-1]
    assert isinstance(done, ChatReply)
    return "".join(event.text for event in events if isinstance(event, ChunkEvent)), done


async def length_of_a_whole_reply(address: str) -> int:
    """Bytes that the server says, its head included."""
    asked = {"message": QUESTION, "stream": True, "resumable": True}
    async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
        reply = await http.post("/chat", json=asked)
    return len(reply.content) + 300


async def test_broken_after_any_number_of_bytes(tmp_path: Path) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        total = await length_of_a_whole_reply(address)
        breaks = 0
        for budget in range(700, total, 97):  # the head and `start`, which names the stream, always come through
            proxy = BreakingProxy(address, budget, 700, 500, 500)
            async with proxy.open() as through:
                text, done = await ask(through)
            assert text == done.response == f'You asked: "{QUESTION}".', budget
            breaks += proxy.num_connections - 1
    assert breaks > 20


async def test_broken_before_the_stream_has_a_name_is_told(tmp_path: Path) -> None:
    async with served(config_file(tmp_path)) as (address, _), BreakingProxy(address, 60).open() as through:
        with pytest.raises(ServerUnreachable, match=through):
            await ask(through)


async def test_connections_that_break_at_once_for_ever_are_given_up(tmp_path: Path) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        proxy = BreakingProxy(address, 600, *[20] * 100)
        async with proxy.open() as through:
            with pytest.raises(ServerUnreachable):
                await ask(through)


async def test_a_server_that_is_gone_is_told_with_its_address() -> None:
    with pytest.raises(ServerUnreachable, match=r"http://127\.0\.0\.1:9.*retina serve"):
        await ask("http://127.0.0.1:9")
