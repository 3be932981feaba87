"""Streams that break, on a cluster with two ingress replicas: gone on with through any of them, every token once."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import ENDLESS, build_endless
from service import Service, free_port, local_config, wait_for
from websockets.sync.client import connect

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(300)]

TOKENS = 1500
FORM = {"message": "Tell me everything", "model": ENDLESS, "stream": "true", "max_new_tokens": str(TOKENS)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Iterator[Service]:
    """Two ingress replicas over the endless model."""
    folder = tmp_path_factory.mktemp("pair")
    checkpoint = build_endless(tiny_checkpoint, folder)

    def change(args: dict[str, Any]) -> None:
        own = {"replica": {"num_cpus": 0.3}, "max_new_tokens": 4000, "max_context_tokens": 8000, "num_slots": 4}
        args["models"] = [{"name": ENDLESS, "family": "smolvlm", "checkpoint": str(checkpoint), "generator": own}]
        args["ingress"] = {"replica": {"num_cpus": 0.2, "min_replicas": 2, "max_replicas": 2}}

    port = free_port()
    service = Service(local_config(folder, port, change), port, folder / "serve.log")
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def whole(pair: Service) -> str:
    """The answer that nothing disturbs."""
    with pair.client(120) as client:
        reply = client.post("/chat", data={**FORM, "stream": "false"}).raise_for_status().json()
    assert reply["usage"]["completion_tokens"] == TOKENS
    return str(reply["response"])


def read_events(reply: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """(id, event, data)."""
    fields: dict[str, str] = {}
    for line in reply.iter_lines():
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
        elif "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}


class Reader:
    """A client that counts what it got, and comes back where it stopped."""

    def __init__(self, service: Service, **form: str) -> None:
        self._service = service
        self._form = {**FORM, "resumable": "true", **form}
        self.text = ""
        self.last_id = ""
        self.last: tuple[str, Any] = ("", {})
        self.start: dict[str, Any] = {}

    @property
    def stream_id(self) -> str:
        return str(self.start["stream_id"])

    def read(self, most: int | None = None) -> None:
        """At most so many events, on a connection of its own that is then closed."""
        with self._service.client(120) as client, self._open(client) as reply:
            assert reply.status_code == 200, reply.read()
            for event_id, name, data in itertools.islice(read_events(reply), most):
                self._take(event_id, name, data)

    def read_while(self, num_events: int, break_it: Callable[[], object]) -> bool:
        """So many events, then `break_it`, and on until the end or until the connection breaks; whether it broke."""
        with self._service.client(120) as client, self._open(client) as reply:
            assert reply.status_code == 200, reply.read()
            try:
                for number, event in enumerate(read_events(reply), 1):
                    self._take(*event)
                    if number == num_events:
                        break_it()
            except httpx.TransportError:
                return True
        return self.last[0] not in ("done", "error")

    def _open(self, client: httpx.Client) -> Any:
        if not self.last_id:
            return client.stream("POST", "/chat", data=self._form)
        return client.stream("GET", f"/chat/streams/{self.stream_id}", headers={"Last-Event-ID": self.last_id})

    def _take(self, event_id: str, name: str, data: Any) -> None:
        assert event_id != self.last_id
        self.last_id, self.last = event_id, (name, data)
        if name == "start":
            self.start = data
        elif name == "chunk":
            self.text += data["text"]


def test_a_reader_that_leaves_again_and_again_gets_every_token_once(pair: Service, whole: str) -> None:
    reader = Reader(pair)
    for most in (1, 1, 2, 30, 100, 200, None):
        reader.read(most)
    assert reader.last[0] == "done"
    assert reader.text == whole == reader.last[1]["response"]


def test_the_ingress_replica_is_killed_in_mid_stream(pair: Service, whole: str) -> None:
    pids = {pair.get("/-/ingress")["pid"] for _ in range(40)}
    assert len(pids) == 2
    reader = Reader(pair)
    assert reader.read_while(20, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids])  # whichever runs it
    wait_for(lambda: _is_ready(pair), 60, "an ingress replica is back")
    reader.read()
    assert reader.last[0] == "done", reader.last
    assert reader.text == whole == reader.last[1]["response"]
    session = reader.last[1]["session_id"]
    history = pair.get(f"/chat/history/{session}")["history"]
    assert [message["content"][-1]["text"] for message in history] == [FORM["message"], whole]
    wait_for(lambda: len({pair.get("/-/ingress")["pid"] for _ in range(20)}) == 2, 60, "both are back")


def test_the_generator_replica_is_killed_in_mid_stream(pair: Service, whole: str) -> None:
    reader = Reader(pair)
    pid = pair.get("/-/engine")[ENDLESS]["pid"]
    assert not reader.read_while(20, lambda: os.kill(pid, signal.SIGKILL)), "the client's connection holds"
    assert reader.last[0] == "done", reader.last
    assert reader.text == whole


@pytest.mark.parametrize("num_events", [1, 10])
def test_stop_ends_the_answer_where_it_is(pair: Service, num_events: int) -> None:
    reader = Reader(pair)
    reader.read(num_events)
    with pair.client() as client:
        client.post(f"/chat/streams/{reader.stream_id}/stop").raise_for_status()
    reader.read()
    assert reader.last[0] == "done"
    assert reader.last[1]["finish_reason"] == "cancelled"
    assert reader.text == reader.last[1]["response"]
    wait_for(lambda: pair.get("/-/engine")[ENDLESS]["free_slots"] == 4, 10, "the slot is free")


def test_a_websocket_goes_on_where_another_was_lost(pair: Service, whole: str) -> None:
    address = f"{pair.url.replace('http', 'ws')}/ws/chat"
    text = ""
    with connect(address) as socket:
        ask = {"type": "ask", "message": FORM["message"], "model": ENDLESS, "max_new_tokens": TOKENS}
        socket.send(json.dumps(ask))
        for _ in range(25):
            message = json.loads(socket.recv(60))
            text += message["data"]["text"] if message["event"] == "chunk" else ""
    stream_id, _, index = message["id"].rpartition(".")
    with connect(address) as socket:
        socket.send(json.dumps({"type": "resume", "stream_id": stream_id, "after": int(index)}))
        while (message := json.loads(socket.recv(60)))["event"] == "chunk":
            text += message["data"]["text"]
    assert message["event"] == "done"
    assert text == whole


def _is_ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
