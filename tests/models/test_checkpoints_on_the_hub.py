"""Hub ids are fetched at their pinned revision, and what goes wrong is said plainly; the hub is one of our own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "idefics3"}',
    "chat_template.jinja": b"Assistant:",
    "model.safetensors": b"weights",
    "merges.txt": b"a b",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"words",
    "onnx/config.json": b"{}",
}


class TinyHub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as one download needs: owner/name at revision main."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/owner/name/tree/{COMMIT}"):
            self._reply(200, json.dumps([_entry(path, data) for path, data in FILES.items()]).encode())
        elif self.path.startswith("/api/models/owner/name/revision/main"):
            self._reply(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        elif self.path.startswith("/api/models/owner/name/revision/"):
            self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif self.path.startswith("/api/models/owner/gated/"):
            self._reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith(f"/owner/name/resolve/{COMMIT}/"):
            self._reply_file(self.path.removeprefix(f"/owner/name/resolve/{COMMIT}/"))
        else:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _reply_file(self, path: str) -> None:
        data = FILES[path]
        self._reply(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), TinyHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


LOCATE = """
import sys
from deployments.errors import CheckpointError
from deployments.models.weights import locate_checkpoint
try:
    print(locate_checkpoint(sys.argv[1], sys.argv[2]))
except CheckpointError as error:
    print("refused:", error)
"""


def locate(cache: Path, hub: str, hub_id: str = "owner/name", revision: str = "main", **environment: str) -> str:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    settings = {"HF_HOME": str(cache), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", **environment}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCATE, hub_id, revision],
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_only_needed_files_are_fetched_and_then_found_offline(hub: str, tmp_path: Path) -> None:
    folder = Path(locate(tmp_path, hub))
    assert folder.name == COMMIT
    found = {path.name: path.read_bytes() for path in folder.rglob("*")}
    assert found == {
        name: FILES[name] for name in ("config.json", "chat_template.jinja", "model.safetensors", "merges.txt")
    }
    assert locate(tmp_path, hub, HF_HUB_OFFLINE="1") == str(folder)
    assert locate(tmp_path, hub, revision=COMMIT, HF_HUB_OFFLINE="1") == str(folder)


def test_offline_and_not_cached(hub: str, tmp_path: Path) -> None:
    said = locate(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert said.startswith("refused: cannot get checkpoint 'owner/name' at revision 'main'")
    assert "HF_HUB_OFFLINE is set" in said
    assert str(tmp_path / "hub") in said


def test_offline_and_half_cached(hub: str, tmp_path: Path) -> None:
    (Path(locate(tmp_path, hub)) / "model.safetensors").unlink()
    assert "does not hold all of it" in locate(tmp_path, hub, HF_HUB_OFFLINE="1")


def test_unreachable_hub(tmp_path: Path) -> None:
    said = locate(tmp_path, "http://127.0.0.1:9")
    assert "the hub cannot be reached" in said
    assert "http://127.0.0.1:9" in said


@pytest.mark.parametrize(
    ("hub_id", "revision", "reason"),
    [
        ("owner/other", "main", "no such repository"),
        ("owner/name", "v9", "no revision 'v9'"),
        ("owner/gated", "main", "gated"),
        ("owner/na--me", "main", "HFValidationError"),
    ],
)
def test_what_the_hub_refuses(hub: str, tmp_path: Path, hub_id: str, revision: str, reason: str) -> None:
    said = locate(tmp_path, hub, hub_id, revision)
    assert said.startswith("refused:")
    assert reason in said


def test_a_cache_that_is_no_folder(hub: str, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("in the way")
    assert locate(tmp_path, hub).startswith("refused: cannot get checkpoint")
