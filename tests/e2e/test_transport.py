"""A token's way through real processes, as `serve run` and as `retina serve` sets them up: fake models, no torch."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from service import BIN, Service, ask, events, free_port, local_config, unique_picture, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

COMMANDS = {
    "serve run": (BIN / "serve", "run"),
    "retina serve": (sys.executable, "-c", "from deployments.cli import main; main()", "serve", "--config"),
}
LONG = " ".join(f"word{index}" for index in range(400))  # an answer of 12 s


@pytest.fixture(scope="module", params=COMMANDS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")

    def fake(args: dict[str, Any]) -> None:
        args["models"] = [{"name": "fake", "family": "fake"}]
        args["ingress"] |= {"max_message_chars": 8_000_000}
        args["generator"] = {"replica": {"num_cpus": 0.1}}

    port = free_port()
    service = Service(local_config(folder, port, fake), port, folder / "serve.log", COMMANDS[request.param])
    try:
        service.start()
        yield service
    finally:
        service.stop()
    with pytest.raises(ConnectionRefusedError):  # nothing is left after Ctrl-C
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_pieces_come_one_by_one_and_join_to_the_reply(service: Service) -> None:
    form = {"message": " ".join("abcdefgh"), "stream": "true"}
    with (
        service.client() as client,
        client.stream("POST", "/chat", data=form, files={"image": unique_picture(1)}) as reply,
    ):
        assert reply.status_code == 200
        (start, _), *pieces, (done, data) = events(reply)
    assert (start, done) == ("start", "done")
    assert len(pieces) == data["usage"]["completion_tokens"]
    assert "".join(piece["text"] for _, piece in pieces) == data["response"]
    assert data["timings"]["encode_source"] == "tower"


def test_a_picture_that_was_deleted_is_not_shown_again(service: Service) -> None:
    with service.client() as client:
        image_id = client.post("/images", files={"image": unique_picture(2)}).raise_for_status().json()["id"]
        first = client.post("/chat", json={"message": "What?", "image_id": image_id}).raise_for_status().json()
        client.delete(f"/images/{image_id}").raise_for_status()
        again = client.post("/chat", json={"message": "And now?", "session_id": first["session_id"]})
    assert first["has_image"]
    assert (again.status_code, again.json()["error"]["code"]) == (404, "image_not_found")
    assert "no longer stored" in again.json()["error"]["message"]


def test_errors_of_other_processes_keep_their_words(service: Service) -> None:
    unknown = ask(service, message="Hello", model="nothing")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "model")
    with service.client() as client:
        assert client.get("/chat/history/nothing").json()["error"]["code"] == "session_not_found"


def test_a_conversation_of_many_bytes(service: Service) -> None:
    with service.client() as client:
        reply = client.post("/chat", json={"message": "x" * 6_000_000, "max_new_tokens": 1})
    assert reply.status_code == 200, reply.text[:300]
    assert reply.json()["usage"]["completion_tokens"] == 1


def test_a_client_that_leaves_ends_its_request(service: Service) -> None:
    before = _engine(service)["cancelled"]
    with (
        service.client() as client,
        client.stream("POST", "/chat", data={"message": LONG, "stream": "true"}) as reply,
    ):
        seen = events(reply)
        assert [next(seen)[0] for _ in range(3)] == ["start", "chunk", "chunk"]
    wait_for(lambda: _engine(service)["running"] == 0, 5, "the request has left the generator")
    assert _engine(service)["cancelled"] == before + 1


def test_a_client_that_leaves_while_it_waits_for_a_plain_reply(service: Service) -> None:
    before = _engine(service)["cancelled"]
    with pytest.raises(httpx.ReadTimeout), service.client(0.5) as client:
        client.post("/chat", json={"message": LONG})
    wait_for(lambda: _engine(service)["running"] == 0, 5, "the request has left the generator")
    assert _engine(service)["cancelled"] == before + 1


def test_a_generator_that_dies_in_mid_stream(service: Service) -> None:
    form = {"message": LONG, "stream": "true", "session_id": "victim"}
    with service.client() as client, client.stream("POST", "/chat", data=form) as reply:
        seen = events(reply)
        assert [next(seen)[0] for _ in range(3)] == ["start", "chunk", "chunk"]
        os.kill(_engine(service)["pid"], signal.SIGKILL)
        name, data = list(seen)[-1]
    assert (name, data["error"]["code"]) == ("error", "part_unavailable")
    with service.client() as client:
        assert client.get("/chat/history/victim").status_code == 404
    wait_for(lambda: ask(service, message="Hi", session_id="victim").status_code == 200, 60, "a new replica answers")


def _engine(service: Service) -> dict[str, Any]:
    engine: dict[str, Any] = service.get("/-/engine")["fake"]
    return engine
