"""Memory of a process that holds one engine and has done nothing else; `generator.py` starts it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.ceilings import BYTES_PER_VALUE, read_shape
from benchmarks.processes import MB, memory_of
from benchmarks.streams import Asked, EngineSettings, ask_all, open_engine

ROOT = Path(__file__).parent.parent
NEW_TOKENS = 64
Row = dict[str, object]


def measure_memory(settings: EngineSettings) -> Row:
    """In a process of its own. Raises RuntimeError with the end of its log."""
    words = [sys.executable, "-m", "benchmarks.engine_memory", json.dumps(asdict(settings), default=str)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"the process whose memory was to be measured failed:\n{done.stderr[-3000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def memory_here(settings: EngineSettings) -> Row:
    """Of this process, with all of the KV cache written: memory that nobody has touched is not there yet."""
    shape = read_shape(settings.checkpoint)
    value_bytes = BYTES_PER_VALUE[settings.dtype]
    with open_engine(settings) as engine:
        kv_bytes = asyncio.run(engine.statistics())["kv_cache_bytes"]
        assert isinstance(kv_bytes, int), kv_bytes
        round_bytes = settings.num_slots * shape.kv_bytes(settings.context_tokens, value_bytes)
        for _ in range(1 + kv_bytes // round_bytes):
            asked = [_full_request(settings.context_tokens) for _ in range(settings.num_slots)]
            asyncio.run(ask_all(engine, asked, settings.image_tokens))
        gc.collect()
        held_bytes, _ = memory_of(os.getpid())
    weight_bytes = shape.num_bytes(value_bytes)
    known_bytes = weight_bytes + kv_bytes if settings.device == "cpu" else 0  # those of a GPU are not in this memory
    return {
        "resident_mb": round(held_bytes / MB, 1),
        "weights_mb": round(weight_bytes / MB, 1),
        "kv_cache_mb": round(kv_bytes / MB, 1),
        "beyond_mb": round((held_bytes - known_bytes) / MB, 1),
    }


def _full_request(context_tokens: int) -> Asked:
    return Asked(context_tokens - NEW_TOKENS, NEW_TOKENS, secrets.token_hex(8))


def main(words: list[str]) -> int:
    given = json.loads(words[0])
    settings = EngineSettings(**{**given, "checkpoint": Path(given["checkpoint"])})
    print(json.dumps(memory_here(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
