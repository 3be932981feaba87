"""`retina batch` as a whole: outputs, resumption, retries, exit codes, Ctrl-C, SIGKILL."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from commands.stage import CIRCLE, PICTURES, begin, config_file, end, gate_models, retina, served
from typer.testing import CliRunner, Result

from deployments.cli import app
from deployments.client.service_client import ServiceClient
from deployments.commands.batch_items import Defaults, open_source
from deployments.commands.batch_output import open_output
from deployments.commands.batch_run import Batch
from deployments.errors import ServerUnreachable
from deployments.fakes import Gate


def run(config: Path, *words: str, expect: int = 0, typed: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["batch", "-c", str(config), *words], input=typed, catch_exceptions=False)
    assert done.exit_code == expect, done.output
    return done


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def num_lines(path: Path) -> int:
    """Whole ones."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def leave_half_a_line(path: Path) -> None:
    """What a kill within a write leaves."""
    with path.open("ab") as file:
        file.write(b'{"id":"half of a li')


def items_file(folder: Path, num_items: int) -> Path:
    path = folder / "items.jsonl"
    items = [{"task": "query", "question": f"question {number}", "image": str(CIRCLE)} for number in range(num_items)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_captions_of_a_folder(config: Path, loaded: list[str], out: Path) -> None:
    done = run(config, str(PICTURES), "-o", str(out), "-l", "short", "-m", "another")
    lines = {line["id"]: line for line in lines_of(out)}
    assert set(lines) == {path.name for path in PICTURES.iterdir()}
    assert lines["red-circle.png"]["reply"]["caption"].startswith("A short caption")
    assert {line["reply"]["model_used"] for line in lines.values()} == {"another"}
    assert f"{len(lines)} answered, 0 failed" in done.stderr
    assert loaded == ["another"]


def test_the_same_command_again_does_nothing_and_changes_are_done(config: Path, loaded: list[str], out: Path) -> None:
    items = items_file(out.parent, 3)
    run(config, str(items), "-o", str(out))
    before = out.read_bytes()
    done = run(config, str(items), "-o", str(out))
    assert "0 answered, 0 failed, 3 were answered before" in done.stderr
    assert out.read_bytes() == before
    items.write_text(items.read_text().replace("question 1", "another question") + '{"image": "gone.png"}\n')
    run(config, str(items), "-o", str(out), expect=3)
    assert out.read_bytes().startswith(before)
    changed, failed = sorted(lines_of(out)[3:], key=lambda line: line["id"])
    assert changed["reply"]["answer"].startswith('You asked: "another question"')
    assert (failed["id"], failed["error"]["param"]) == ("4", "image")


def test_failures_are_asked_again_when_that_is_wanted(config: Path, loaded: list[str], out: Path) -> None:
    items = out.parent / "items.jsonl"
    items.write_text('{"id": "late", "image": "late.png"}\n{"id": "there", "image": "' + str(CIRCLE) + '"}\nno json\n')
    assert "1 answered, 2 failed" in run(config, str(items), "-o", str(out), expect=3).stderr
    (out.parent / "late.png").write_bytes(CIRCLE.read_bytes())
    done = run(config, str(items), "-o", str(out), "--retry-failed", expect=3)
    assert "1 answered, 1 failed, 1 were answered before" in done.stderr
    lines = {line["id"]: line for line in lines_of(out)}
    assert len(lines_of(out)) == 3
    assert "reply" in lines["late"]
    assert "JSON object" in lines["3"]["error"]["message"]
    assert "1 failed before" in run(config, str(items), "-o", str(out), expect=3).stderr


def test_lines_from_a_pipe_to_a_pipe(config: Path, loaded: list[str]) -> None:
    typed = f'{{"id": 7, "image": "{CIRCLE}"}}\n\n{{"task": "chat", "question": "Hello"}}\n'
    done = run(config, "-", "-o", "-", "--ordered", typed=typed)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["id"], first["task"], second["id"], second["task"]) == ("7", "caption", "3", "chat")
    assert second["reply"]["response"] == 'You asked: "Hello".'


def test_every_task_has_its_reply(config: Path, loaded: list[str], out: Path) -> None:
    for task, words, field in (
        ("query", ("-q", "What?"), "answer"),
        ("detect", ("--object", "dot"), "objects"),
        ("point", ("--object", "dot"), "points"),
        ("chat", ("-q", "What?"), "response"),
    ):
        run(config, str(PICTURES), "-o", str(out), "--task", task, *words)
        new = [line for line in lines_of(out) if line["task"] == task]
        assert len(new) == len(list(PICTURES.iterdir()))
        assert all(field in line["reply"] for line in new)
    listed = CliRunner().invoke(app, ["get", "/chat/sessions", "-c", str(config)])
    assert json.loads(listed.stdout)["sessions"] == []


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("--question", "x"), "--question"),
        (("--task", "query"), "--question"),
        (("--task", "detect", "--length", "short"), "--length"),
        (("--language", "klingon"), "--language"),
        (("--output", "-", "--retry-failed"), "--retry-failed"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(
    config: Path, loaded: list[str], out: Path, words: tuple[str, ...], option: str
) -> None:
    done = run(config, str(PICTURES), "-o", str(out), *words, expect=2)
    assert option in done.stderr
    assert not out.exists()
    assert not loaded


# ------------------------------------------------------------------------------------- against servers


class Service:
    """Answers captions, after what a test lets it say before."""

    def __init__(self, *before: httpx.Response | Exception) -> None:
        self.before = list(before)
        self.num_asked = 0
        self.num_running = self.max_running = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        self.num_asked += 1
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        await asyncio.sleep(0)
        self.num_running -= 1
        if self.before:
            first = self.before.pop(0)
            if isinstance(first, Exception):
                raise first
            return first
        usage = {"prompt_tokens": 1, "image_tokens": 0, "reused_tokens": 0, "completion_tokens": 1}
        times = dict.fromkeys(("queue_ms", "encode_ms", "prefill_ms", "decode_ms", "first_token_ms"), 1.0)
        made = {"model_used": "m", "request_id": "r", "image_id": None, "finish_reason": "stop", "cost": None}
        reply = {"answer": "yes", **made, "usage": usage, "timings": {**times, "encode_source": None}}
        return httpx.Response(200, json=reply)


def overloaded(retry_after: str | None = "0", status: int = 503) -> httpx.Response:
    error = {"code": "overloaded", "message": "too much", "param": None, "request_id": "r"}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return httpx.Response(status, json={"error": error}, headers=headers)


async def run_batch(service: Service, out: Path, num_items: int, retries: int = 5, **fields: Any) -> Batch:
    items = out.parent / "items.jsonl"
    items.write_text("".join(f'{{"question": "{number}"}}\n' for number in range(num_items)))
    output = open_output(out, retry_failed=False)
    async with httpx.AsyncClient(transport=httpx.MockTransport(service.answer), base_url="http://x") as http:
        client = ServiceClient(http)
        batch = Batch(
            client, open_source(str(items)), Defaults("query", {}), output, fields.pop("concurrency", 2), retries
        )
        try:
            async for _ in batch.run():
                pass
        finally:
            output.close()
    return batch


async def test_a_busy_service_is_asked_again_when_it_says(out: Path) -> None:
    service = Service(overloaded(), overloaded(status=429), overloaded("0.0"))
    batch = await run_batch(service, out, 4)
    assert (batch.tally.num_answered, batch.tally.num_failed, service.num_asked) == (4, 0, 7)


async def test_patience_has_an_end_which_is_an_error_line(out: Path) -> None:
    service = Service(*[overloaded() for _ in range(3)])
    batch = await run_batch(service, out, 1, retries=2)
    assert (batch.tally.num_failed, service.num_asked) == (1, 3)
    [line] = lines_of(out)
    assert line["error"]["code"] == "overloaded"


async def test_what_the_service_refuses_is_not_asked_again(out: Path) -> None:
    refused = httpx.Response(400, json={"error": {"code": "x", "message": "no", "param": None, "request_id": "r"}})
    service = Service(refused)
    batch = await run_batch(service, out, 2)
    assert (batch.tally.num_answered, batch.tally.num_failed, service.num_asked) == (1, 1, 2)


async def test_a_service_that_goes_away_is_no_items_fault(out: Path) -> None:
    service = Service(*[httpx.ConnectError("gone") for _ in range(20)])
    with pytest.raises(ServerUnreachable):
        await run_batch(service, out, 4, retries=0)
    assert lines_of(out) == []


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_so_many_at_a_time_and_no_more(out: Path, concurrency: int) -> None:
    service = Service()
    await run_batch(service, out, 20, concurrency=concurrency)
    assert service.max_running == concurrency
    assert len(lines_of(out)) == 20


async def test_killed_in_mid_run_and_gone_on_with(tmp_path: Path, out: Path, loaded: list[str]) -> None:
    items = items_file(tmp_path, 200)
    words = ("batch", str(items), "-o", str(out), "--concurrency", "4")
    async with served(config_file(tmp_path)) as (address, _):
        process = await begin(tmp_path, *words, "--server", address)
        async with asyncio.timeout(60):
            while num_lines(out) < 20:
                assert process.returncode is None
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await end(process)
        num_done = num_lines(out)
        leave_half_a_line(out)
        again = await retina(tmp_path, *words, "--server", address)
    assert 20 <= num_done < 200
    assert again.code == 0, again.err
    assert f"{200 - num_done} answered, 0 failed, {num_done} were answered before" in again.err
    counts = Counter(line["id"] for line in lines_of(out))
    assert counts == {str(number): 1 for number in range(1, 201)}


async def test_interrupted_it_leaves_a_clean_file(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    gate_models(monkeypatch, gate)
    items = items_file(tmp_path, 8)
    async with served(config_file(tmp_path)) as (address, _):
        process = await begin(tmp_path, "batch", str(items), "-o", str(out), "--server", address)
        await asyncio.wait_for(gate.reached.wait(), 60)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(gate.left.wait(), 60)
        ended = await end(process)
    assert ended.code == 130
    assert "interrupted" in ended.err
    assert "0 answered, 0 failed" in ended.err
    assert "the same command goes on" in ended.err
    assert "Traceback" not in ended.err
    assert lines_of(out) == []


def test_in_order_of_the_input(config: Path, loaded: list[str], out: Path) -> None:
    items = items_file(out.parent, 30)
    run(config, str(items), "-o", str(out), "--ordered", "--concurrency", "5")
    assert [line["id"] for line in lines_of(out)] == [str(number) for number in range(1, 31)]
