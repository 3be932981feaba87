"""What a token costs on its way from a generator's thread to the client's socket, in processor time by process.

    python -m benchmarks.transport                          # as `retina serve` sets Ray up, 16 users
    python -m benchmarks.transport --way serve-run --way in-process
    python -m benchmarks.transport --way haproxy

The generator computes nothing and gives every stream a token at each step, so that what is left is the transport:
core-milliseconds per token, how long the first token takes from that thread to the client, and how evenly the others
come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.card import machine_card
from benchmarks.paced import STAMP, WORD
from benchmarks.paced_graph import STEP_VARIABLE
from benchmarks.processes import PROC, ProcessTree, running
from benchmarks.report import Report, Row, add_report_options
from benchmarks.servers import ROOT, answers, free_port
from deployments.serve_settings import CLUSTER_SETTINGS

MODEL = "paced"
READY_WITHIN_S = 120.0
WARM_S, IDLE_S = 1.0, 3.0
WAYS: dict[str, dict[str, str]] = {  # environment of `serve run`
    "retina-serve": dict(CLUSTER_SETTINGS),
    "serve-run": {},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
IN_PROCESS = "in-process"  # without Ray, under uvicorn
REST = "rest of Ray"


# ------------------------------------------------------------------------------------- the load


@dataclass(slots=True)
class Seen:
    num_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    way_s: list[float] = field(default_factory=list)  # of first tokens, from the generator's thread to the client
    gaps_s: list[float] = field(default_factory=list)


async def drive(port: int, users: int, tokens: int, seconds: float, *, resumable: bool) -> Seen:
    """So many users who ask again and again, each in one stream at a time."""
    seen, until = Seen(), time.monotonic() + seconds
    question = {"message": "Hello", "stream": True, "max_new_tokens": tokens, "resumable": resumable}
    await asyncio.gather(*(_use(port, json.dumps(question).encode(), tokens, until, seen) for _ in range(users)))
    return seen


async def _use(port: int, body: bytes, tokens: int, until: float, seen: Seen) -> None:
    while time.monotonic() < until:
        await _ask(port, body, seen)
        seen.num_tokens += tokens


async def _ask(port: int, body: bytes, seen: Seen) -> None:
    """Over a plain socket: a client's own time would show in the figures of a machine with few cores."""
    head = f"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked = last = time.monotonic()
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    reply = b""
    while data := await reader.read(65536):
        now = time.monotonic()
        if WORD.encode() in data:
            if WORD.encode() in reply:
                seen.gaps_s.append(now - last)
            else:
                seen.first_s.append(now - asked)
                seen.way_s.append(now - made_s(data))
            last = now
        reply += data
    writer.close()
    assert b"event: done" in reply, reply[-1000:]


def made_s(first: bytes) -> float:
    """When the generator made the token that is in here, on the monotonic clock."""
    stamp = STAMP.search(first)
    assert stamp, first
    return int(stamp[1]) / 1e9


# ------------------------------------------------------------------------------------- the service


@contextmanager
def serving(way: str, step_s: float) -> Iterator[tuple[int, ProcessTree]]:
    """Port and processes. Raises NotStarted."""
    with tempfile.TemporaryDirectory(prefix="transport-", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        config = _write_config(folder, port)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        own = {"RAY_TMPDIR": name, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), STEP_VARIABLE: str(step_s)}
        if way == IN_PROCESS:
            command = [sys.executable, "-m", "benchmarks.paced_graph", str(config), str(port)]
        else:
            command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
        with running(
            command,
            folder=ROOT,
            log=folder / "serve.log",
            environment={**kept, **own, **WAYS.get(way, {})},
            is_ready=lambda: answers(f"http://127.0.0.1:{port}/readyz"),
            ready_within_s=READY_WITHIN_S,
        ) as process:
            yield port, ProcessTree(process.pid)


def _write_config(folder: Path, port: int) -> Path:
    small = {"replica": {"num_cpus": 0.1}}
    arguments = {
        "data_dir": str(folder / "data"),
        "models": [{"name": MODEL, "family": "fake"}],
        "ingress": small,
        "session_router": small,
        "vision_encoder": small,
        "generator": small,
    }
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"log_level": "INFO", "enable_access_log": False},
        "applications": [
            {
                "name": "retina",
                "route_prefix": "/",
                "import_path": "benchmarks.paced_graph:build",
                "args": arguments,
            }
        ],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def cpu_seconds(tree: ProcessTree, way: str) -> Mapping[str, float]:
    """So far, by what the processes are."""
    spent: defaultdict[str, float] = defaultdict(float)
    for stat in tree.stats():
        spent[IN_PROCESS if way == IN_PROCESS else _part(stat.pid)] += stat.cpu_s
    return spent


def _part(pid: int) -> str:
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return REST
    if command.startswith("ray::ServeReplica:retina:"):
        return command.split(":")[-1].removesuffix(f"-{MODEL}")
    if Path(command).name == "haproxy":
        return "haproxy"
    return "proxy" if command.startswith("ray::ProxyActor") else REST


# ------------------------------------------------------------------------------------- the measurement


def measure(way: str, options: argparse.Namespace) -> Iterator[Row]:
    step_s = options.step_ms / 1000
    with serving(way, step_s) as (port, tree):
        resumable = options.resumable
        asyncio.run(drive(port, 2, 16, WARM_S, resumable=resumable))
        alone = asyncio.run(drive(port, 1, 4, IDLE_S, resumable=resumable))
        before, began = cpu_seconds(tree, way), time.monotonic()
        seen = asyncio.run(drive(port, options.users, options.tokens, options.seconds, resumable=resumable))
        spent_s, after = time.monotonic() - began, cpu_seconds(tree, way)
    used = {part: seconds - before.get(part, 0.0) for part, seconds in sorted(after.items())}
    for part, seconds in {**used, "all": sum(used.values())}.items():
        yield {
            "part": "processor time",
            "way": way,
            "process": part,
            "core_ms_per_token": round(seconds * 1000 / seen.num_tokens, 3),
            "core_ms_per_s": round(seconds * 1000 / spent_s),
        }
    yield {
        "part": "what a client sees",
        "way": way,
        "tokens_per_s": round(seen.num_tokens / spent_s),
        "first_event_alone_ms": _ms(statistics.median(alone.way_s)),
        "ttft_alone_ms": _ms(statistics.median(alone.first_s)),
        "ttft_p50_ms": _ms(statistics.median(seen.first_s)),
        "gap_p50_ms": _ms(statistics.median(seen.gaps_s)),
        "gap_p99_ms": _ms(statistics.quantiles(seen.gaps_s, n=100)[-1]),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    card = machine_card()
    rows = [row for way in options.way or ["retina-serve"] for row in measure(way, options)]
    rows.sort(key=lambda row: str(row["part"]), reverse=True)
    settings = {name: getattr(options, name) for name in ("users", "tokens", "seconds", "step_ms", "resumable")}
    Report("transport", card, rows, settings=settings).finish(options)
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", action="append", choices=[*WAYS, IN_PROCESS], help="may be given again")
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--step-ms", type=float, default=22.0, help="the engine's; one token for each stream")
    parser.add_argument("--resumable", action="store_true", help="streams that are kept, so that clients can come back")
    add_report_options(parser)
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
