"""Replicas killed under load, a restart of everything, and a cluster that is too small."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ENDLESS
from service import Service, events, free_port, local_config, unique_picture, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(400)]

CLEAR_CODES = {"part_unavailable", "deadline_exceeded", "overloaded"}


class Load:
    """Clients that stream turns with pictures until told to stop, and remember what became of each."""

    def __init__(self, service: Service, num_clients: int) -> None:
        self._service = service
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(num_clients)
        self.answered: list[dict[str, Any]] = []
        self.failed: list[str] = []
        self._futures = [self._pool.submit(self._work, index) for index in range(num_clients)]

    def finish(self) -> None:
        self._stop.set()
        for future in self._futures:
            future.result(120)
        self._pool.shutdown()

    def _work(self, index: int) -> None:

        count = 0
        while not self._stop.is_set():
            count += 1
            self._turn(unique_picture(1000 * index + count), f"load-{index}-{count}")

    def _turn(self, picture: bytes, session: str) -> None:
        form = {"message": "What do you see in this image?", "stream": "true", "session_id": session}
        with (
            self._service.client(120) as client,
            client.stream("POST", "/chat", data=form, files={"image": picture}) as reply,
        ):
            if reply.status_code != 200:
                reply.read()
                self.failed.append(reply.json()["error"]["code"])
                time.sleep(0.2)  # a client that backs off a little
                return
            last = list(events(reply))[-1]
        if last[0] == "done":
            self.answered.append(last[1])
        else:
            assert last[0] == "error"
            self.failed.append(last[1]["error"]["code"])


PID_AT = {
    "generator": ("/-/engine", "smolvlm"),
    "vision_encoder": ("/-/cache",),
    "session_router": ("/-/session_router",),
}


@pytest.mark.parametrize("part", PID_AT)
def test_a_killed_replica_costs_only_what_it_was_working_on(service: Service, part: str) -> None:
    load = Load(service, 6)
    wait_for(lambda: len(load.answered) >= 6, 60, "answers before the kill")
    path, *keys = PID_AT[part]
    shown = service.get(path)
    for key in keys:
        shown = shown[key]
    os.kill(shown["pid"], signal.SIGKILL)
    killed_at = len(load.answered)
    try:
        wait_for(lambda: len(load.answered) >= killed_at + 12, 90, f"answers after the kill, failures: {load.failed}")
    finally:
        load.finish()
    assert set(load.failed) <= CLEAR_CODES
    with service.client() as client:
        for reply in load.answered:  # every answer that a client saw to its end is stored
            history = client.get(f"/chat/history/{reply['session_id']}").json()
            assert history["history"][-1]["content"] == [{"type": "text", "text": reply["response"]}]


def test_a_stream_that_dies_says_so_and_leaves_the_session_as_it_was(service: Service) -> None:
    form = {"message": "Go on", "model": ENDLESS, "stream": "true", "max_new_tokens": "4000", "session_id": "victim"}
    with service.client() as client, client.stream("POST", "/chat", data=form) as reply:
        seen = events(reply)
        assert next(seen)[0] == "start"
        assert next(seen)[0] == "chunk"
        os.kill(service.get("/-/engine")[ENDLESS]["pid"], signal.SIGKILL)
        last = list(seen)[-1]
    assert last[0] == "error"
    assert last[1]["error"]["code"] == "part_unavailable"
    with service.client() as client:
        assert client.get("/chat/history/victim").status_code == 404
        wait_for(lambda: client.get("/readyz").status_code == 200, 60, "the replica is back")
        again = client.post(
            "/chat", data={"message": "Go on", "model": ENDLESS, "max_new_tokens": "8", "session_id": "victim"}
        )
    assert again.status_code == 200


def test_sessions_and_features_survive_a_restart(service: Service) -> None:

    picture = unique_picture(77)
    with service.client() as client:
        form = {"message": "What do you see in this image?", "session_id": "survivor"}
        first = client.post("/chat", data=form, files={"image": picture}).raise_for_status().json()
    service.stop()
    service.start()
    with service.client() as client:
        assert client.get("/chat/history/survivor").json()["length"] == 2
        form = {"message": "Can you describe the image again?", "session_id": "survivor"}
        again = client.post("/chat", data=form).raise_for_status().json()
    assert (again["has_image"], again["conversation_length"]) == (True, 4)
    assert again["timings"]["encode_source"] == "disk"
    assert first["timings"]["encode_source"] == "tower"
    assert "vision_encoder_tower_images" not in service.get("/-/cache")["metrics"]


def test_a_cluster_that_is_too_small_fails_with_the_sum(tmp_path: Path) -> None:
    def ask_too_much(args: dict[str, Any]) -> None:
        del args["models"][1:]
        args["generator"]["replica"]["num_cpus"] = 64

    port = free_port()
    small = Service(local_config(tmp_path, port, ask_too_much), port, tmp_path / "serve.log")
    small.launch()
    try:
        wait_for(lambda: "64.7 CPU" in small.log.read_text(), 60, "the sum in the log")
        assert "generator-smolvlm" in small.log.read_text()
        with pytest.raises(httpx.HTTPStatusError):
            httpx.get(f"{small.url}/healthz").raise_for_status()
    finally:
        small.stop()
