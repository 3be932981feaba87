"""A replica that is killed in mid-stream: whoever reads goes on through another one, and has every token once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
QUESTION = "one two three four five six seven eight"
ANSWER = f'You asked: "{QUESTION}".'
PATIENCE_S = 30.0


@contextlib.contextmanager
def replica(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    script = Path(__file__).with_name("replica_process.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def open_socket(address: str) -> ClientConnection:
    return connect(f"{address.replace('http', 'ws', 1)}/ws/chat", close_timeout=0.1)


def read(method: str, url: str, num_events: int | None = None, **request: object) -> Iterator[ServerSentEvent]:
    """Up to so many events, or until the connection breaks."""
    with (
        httpx.Client(timeout=PATIENCE_S) as client,
        connect_sse(client, method, url, **request) as source,  # type: ignore[arg-type]
    ):
        assert source.response.status_code == 200
        for number, event in enumerate(source.iter_sse(), 1):
            yield event
            if number == num_events:
                return


@pytest.mark.parametrize("num_seen", [1, 2, 6])
def test_killed_after_so_many_events(tmp_path: Path, num_seen: int) -> None:
    asked = {"message": QUESTION, "session_id": "s", "stream": True, "resumable": True}
    with replica(tmp_path) as (first, there), replica(tmp_path) as (_, here):
        seen = list(read("POST", f"{there}/chat", num_seen, json=asked))
        first.kill()
        first.wait()
        stream_id = seen[0].json()["stream_id"]
        headers = {"Last-Event-ID": seen[-1].id}
        events = [*seen, *read("GET", f"{here}/chat/streams/{stream_id}", headers=headers)]
        assert [event.id for event in events] == [f"{stream_id}.{index}" for index in range(len(events))]
        assert [event.event for event in events] == ["start", *["chunk"] * (len(events) - 2), "done"]
        assert "".join(event.json()["text"] for event in events[1:-1]) == ANSWER == events[-1].json()["response"]
        assert events[-1].json()["conversation_length"] == 2
        history = httpx.get(f"{here}/chat/history/s").json()["history"]
        assert [message["content"][0]["text"] for message in history] == [QUESTION, ANSWER]
        assert httpx.get(f"{here}/-/ingress").json()["ingress_streams.taken_over"] == 1


@pytest.mark.parametrize("num_seen", [1, 4])
def test_killed_under_a_socket(tmp_path: Path, num_seen: int) -> None:
    with replica(tmp_path) as (first, there), replica(tmp_path) as (_, here):
        with open_socket(there) as socket:
            socket.send(json.dumps({"type": "ask", "message": QUESTION, "session_id": "s"}))
            events = [json.loads(socket.recv(PATIENCE_S)) for _ in range(num_seen)]
            first.kill()
            with contextlib.suppress(ConnectionClosed):
                while True:  # what was on its way counts, too
                    events.append(json.loads(socket.recv(PATIENCE_S)))
        stream_id = events[0]["data"]["stream_id"]
        with open_socket(here) as socket:
            socket.send(json.dumps({"type": "resume", "stream_id": stream_id, "after": len(events) - 1}))
            while events[-1]["event"] != "done":
                events.append(json.loads(socket.recv(PATIENCE_S)))
    assert [event["id"] for event in events] == [f"{stream_id}.{index}" for index in range(len(events))]
    assert "".join(event["data"]["text"] for event in events[1:-1]) == ANSWER


def test_all_replicas_killed_and_one_begun_again(tmp_path: Path) -> None:
    asked = {"message": QUESTION, "session_id": "s", "stream": True, "resumable": True}
    with replica(tmp_path) as (_, address):
        seen = list(read("POST", f"{address}/chat", 3, json=asked))
    with replica(tmp_path) as (_, address):
        rest = list(read("POST", f"{address}/chat", json=asked, headers={"Last-Event-ID": seen[-1].id}))
    assert "".join(event.json()["text"] for event in (seen + rest)[1:-1]) == ANSWER
    assert rest[-1].json()["conversation_length"] == 2
