"""The graph in one process: routes over fake models, start-up without heavy imports, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from deployments.config import RetinaConfig, parse_config
from deployments.ingress.task_types import TaskChunk, TaskInput, TaskStarted
from deployments.ingress.turns import TurnChunk, TurnFinished, TurnInput, TurnStarted
from deployments.local import open_graph
from deployments.types import DetectTask

ROOT = Path(__file__).parent.parent.parent
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x02\x00\x00\x00\x90wS\xde"
    b"\x00\x00\x00\x0cIDATx\x9cc\xf8\xcf\xc0\x00\x00\x03\x01\x01\x00\xc9\xfe\x92\xef\x00\x00\x00\x00IEND\xaeB`\x82"
)


def fake_config(tmp_path: Path) -> RetinaConfig:
    return parse_config(
        {
            "data_dir": str(tmp_path / "data"),
            "models": [{"name": "fake", "family": "fake"}, {"name": "other", "family": "fake"}],
            "images": {"store": "memory"},
            "session_router": {"store": "memory"},
        }
    )


async def test_a_turn_with_a_picture(tmp_path: Path) -> None:
    async with open_graph(fake_config(tmp_path)) as graph:
        image = await graph.add_image(PNG)
        turn = TurnInput(request_id="r", tenant=graph.tenant, text="What is it?", image=image, model="other")
        events = [event async for event in graph.stream(turn)]
    assert isinstance(events[0], TurnStarted)
    finished = events[-1]
    assert isinstance(finished, TurnFinished)
    assert finished.reply.has_image
    assert finished.reply.model_used == "other"
    assert "".join(event.text for event in events if isinstance(event, TurnChunk)) == finished.reply.response


async def test_a_task_about_a_picture(tmp_path: Path) -> None:
    async with open_graph(fake_config(tmp_path)) as graph:
        image = await graph.add_image(PNG)
        asked = TaskInput("r", graph.tenant, DetectTask("dot"), image, model="other")
        reply = await graph.tasks.reply(asked)
        events = [event async for event in graph.tasks.stream(asked)]
    assert reply.model_used == "other"
    assert reply.found
    assert events[0] == TaskStarted("other")
    assert tuple(event.found[0] for event in events if isinstance(event, TaskChunk)) == reply.found


async def test_the_http_surface_over_the_same_graph(tmp_path: Path) -> None:
    async with open_graph(fake_config(tmp_path)) as graph:
        transport = httpx.ASGITransport(graph.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://retina") as client:
            first = (await client.post("/chat", data={"message": "Hello"}, files={"image": PNG})).json()
            session = first["session_id"]
            history = (await client.get(f"/chat/history/{session}")).json()
            caption = await client.post("/caption", files={"image": PNG})
            ready = await client.get("/readyz")
            counts = (await client.get("/-/ingress")).json()
            engines = (await client.get("/-/engine")).json()
    assert history["length"] == first["conversation_length"] == 2
    assert "1 x 1 pixels" in caption.json()["caption"]
    assert caption.json()["timings"]["encode_source"] == "memory"  # the features of the chat's picture
    assert (counts["ingress_tasks.caption.stop"], counts["ingress_requests.200"]) == (1, 4)
    assert ready.status_code == 200
    assert set(engines) == {"fake", "other"}


async def test_disk_stores_keep_a_session_for_the_next_start(tmp_path: Path) -> None:
    config = parse_config({"data_dir": str(tmp_path / "data"), "models": [{"name": "fake", "family": "fake"}]})
    async with open_graph(config) as graph:
        turn = TurnInput(request_id="r", tenant=graph.tenant, text="Remember", session_id="kept")
        assert [event async for event in graph.stream(turn)]
    async with open_graph(config) as graph:
        assert next(message.text for message in await graph.router.history(graph.tenant, "kept")) == "Remember"


@pytest.mark.parametrize("module", ["deployments", "deployments.cli", "deployments.types", "deployments.ingress.app"])
def test_importing_does_nothing_heavy(module: str) -> None:
    heavy = "ray", "torch", "transformers", "diskcache"
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def retina(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from deployments.cli import main; main()"]
    return subprocess.run([*program, *words], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_check_prints_the_resolved_config_and_the_sum() -> None:
    done = retina("check", "configs/local.yaml")
    assert done.returncode == 0
    assert "max_queued_requests: 1024" in done.stdout
    assert "generator-smolvlm" in done.stdout
    assert "1.9 CPU" in done.stdout


def test_check_refuses_an_unknown_key(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    document["applications"][0]["args"]["colour"] = "red"
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document))
    done = retina("check", str(path))
    assert done.returncode == 1
    assert "args.colour" in done.stderr
    assert "session_router" in done.stderr


@pytest.mark.parametrize("words", [("check", "nowhere.yaml"), ("chat", "-c", "nowhere.yaml", "-q", "hi")])
def test_a_missing_config_is_one_clear_line(words: tuple[str, ...]) -> None:
    done = retina(*words)
    assert done.returncode == 1
    assert "nowhere.yaml: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_chat_in_the_terminal_with_the_fake_model(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs" / "fake.yaml").read_text())
    config["applications"][0]["args"]["data_dir"] = str(tmp_path / "data")
    path = tmp_path / "fake.yaml"
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "one.png").write_bytes(PNG)
    done = retina("chat", "-c", str(path), "--image", str(tmp_path / "one.png"), "--question", "What is it?")
    assert done.returncode == 0, done.stderr
    assert "What is it?" in done.stdout
    missing = retina("chat", "-c", str(path), "--image", str(tmp_path / "two.png"), "--question", "What is it?")
    assert missing.returncode == 1
    assert "two.png: No such file" in missing.stderr


def test_bytes_that_are_no_text_end_the_terminal_chat_with_a_reason(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "configs" / "fake.yaml").read_text())
    config["applications"][0]["args"]["data_dir"] = str(tmp_path / "data")
    path = tmp_path / "fake.yaml"
    path.write_text(yaml.safe_dump(config))
    program = [sys.executable, "-c", "from deployments.cli import main; main()", "chat", "-c", str(path)]
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(program, input=b"\xff\xfe\n", capture_output=True, cwd=ROOT, timeout=60, env=environment)
    assert done.returncode == 1
    assert b"cannot be read" in done.stderr
