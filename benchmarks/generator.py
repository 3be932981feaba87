"""The engine alone, without Ray and HTTP, against transformers' `generate` and against what the machine could do.

    python -m benchmarks.generator                                  # everything; about five minutes on two cores
    python -m benchmarks.generator --parts step --batches 1,16      # one decode step as a share of its ceiling
    python -m benchmarks.generator --device cuda --dtype bfloat16   # needs torch, transformers, pydantic, PyYAML, rich

Parts: sweep (requests of 88 prompt tokens, 64 of them a picture's, and 64 new ones, by batch, against `generate`); step
(one decode step at some lengths, against the same matrix products, done in the fastest way, and the reading of keys and
values); long (what a prompt of 4,000 tokens does to 8 streams); memory (of a process that holds an engine, beyond
weights and KV cache).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import secrets
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.bars import Bar, Verdict
from benchmarks.card import machine_card
from benchmarks.ceilings import BYTES_PER_VALUE, measure_ceilings, read_shape, step_ceiling_ms
from benchmarks.checkpoint import cached_checkpoint
from benchmarks.engine_memory import measure_memory
from benchmarks.generate import Generate
from benchmarks.report import Plot, Report, add_report_options
from benchmarks.streams import (
    Asked,
    EngineSettings,
    ask_all,
    gaps_around_s,
    long_prompt_among_streams,
    open_engine,
    steady_gaps_s,
)
from benchmarks.summary import percentile, summarize
from benchmarks.torch_threads import compute_apart

PARTS = ("sweep", "step", "long", "memory")
PICTURE_TOKENS = 64
PROMPT_TOKENS, NEW_TOKENS = 88, 64
STEP_PROMPT_TOKENS = 16  # short: all streams begin at about the same time, and grow together
STEP_WITHIN = 16  # tokens more or less than --positions
NUM_STREAMS, STREAM_PROMPT_TOKENS = 8, 128
LONG_PROMPT_TOKENS = 4000
MEMORY_SLOTS, MEMORY_CONTEXT_TOKENS, MEMORY_PREFIX_BYTES = 16, 512, 32_000_000  # small: all of it must be written
Row = dict[str, object]


def main(words: list[str] | None = None) -> int:
    options = parse(words)
    card = machine_card()
    rows: list[Row] = []
    progress = Console(stderr=True)
    for part in options.parts:
        progress.print(f"{part} …", highlight=False)
        rows += MEASURES[part](options)
    plot = Plot(x="batch", y="tokens_per_s", line="who", panel="part")
    Report("generator", card, rows, verdicts=verdicts(rows), settings=vars(options), plot=plot).finish(options)
    return 0


# ------------------------------------------------------------------------------------- parts


def sweep(options: argparse.Namespace) -> Iterator[Row]:
    """Requests that come at once, by their number."""
    settings = _settings(options, max(options.batches), PROMPT_TOKENS + NEW_TOKENS, PICTURE_TOKENS)
    with open_engine(settings) as engine:
        for batch in options.batches:
            asked = [Asked(PROMPT_TOKENS, NEW_TOKENS, _new_key()) for _ in range(batch)]
            warm_up = [Asked(PROMPT_TOKENS, 4, _new_key()) for _ in range(batch)]
            asyncio.run(ask_all(engine, warm_up, PICTURE_TOKENS))
            summary = summarize(asyncio.run(ask_all(engine, asked, PICTURE_TOKENS)))
            yield _sweep_row(
                f"engine {options.dtype}", batch, summary.tokens_per_s, summary.ttft_p50_ms, summary.gap_p50_ms
            )
    for dtype in options.generate_dtypes:
        generate = Generate.load(options.checkpoint, dtype, options.device)
        for batch in options.batches:
            work = partial(generate.measure, batch, PROMPT_TOKENS, NEW_TOKENS)
            made = compute_apart(options.num_threads, work)
            yield _sweep_row(f"generate {dtype}", batch, made.tokens_per_s, made.ttft_ms, made.step_ms)


def _sweep_row(who: str, batch: int, tokens_per_s: float, ttft_ms: float, gap_ms: float | None) -> Row:
    figures: Row = {"tokens_per_s": tokens_per_s, "ttft_p50_ms": ttft_ms, "gap_p50_ms": gap_ms}
    return {"part": "sweep", "who": who, "batch": batch, **figures}


def step(options: argparse.Namespace) -> Iterator[Row]:
    """One decode step of so many sequences of such a length, and the least it could take."""
    import torch

    shape = read_shape(options.checkpoint)
    settings = _settings(options, max(options.batches), max(options.positions) + 2 * STEP_WITHIN, 0)
    measured = {}
    ceilings = compute_apart(
        options.num_threads,
        lambda: measure_ceilings(shape, options.batches, getattr(torch, options.dtype), options.device),
    )
    with open_engine(settings) as engine:
        for batch in options.batches:
            num_new = max(options.positions) + STEP_WITHIN - STEP_PROMPT_TOKENS
            asked = [Asked(STEP_PROMPT_TOKENS, num_new, _new_key()) for _ in range(batch)]
            records = asyncio.run(ask_all(engine, asked, 0))
            for positions in options.positions:
                gaps = steady_gaps_s(records, positions, STEP_WITHIN)
                measured[positions, batch] = percentile(gaps, 50) * 1000
    for (positions, batch), step_ms in measured.items():
        ceiling_ms = step_ceiling_ms(shape, ceilings, batch, positions, BYTES_PER_VALUE[options.dtype])
        yield {
            "part": "step",
            "who": f"engine {options.dtype}",
            "batch": batch,
            "positions": positions,
            "step_ms": round(step_ms, 3),
            "ceiling_ms": round(ceiling_ms, 3),
            "products_ms": ceilings.products_ms[batch],
            "plain_products_ms": ceilings.plain_products_ms[batch],
            "share_of_ceiling": round(ceiling_ms / step_ms, 3),
            "read_gb_per_s": ceilings.read_gb_per_s,
            "matrix_gflop_per_s": ceilings.matrix_gflop_per_s,
        }


def long(options: argparse.Namespace) -> Iterator[Row]:
    """Streams that run, and a long prompt that comes among them."""
    stream_tokens = LONG_PROMPT_TOKENS - STREAM_PROMPT_TOKENS  # more than they will get
    settings = _settings(options, NUM_STREAMS + 1, LONG_PROMPT_TOKENS + 2, 0)
    streams = [Asked(STREAM_PROMPT_TOKENS, stream_tokens, _new_key()) for _ in range(NUM_STREAMS)]
    long_prompt = Asked(LONG_PROMPT_TOKENS, 2, _new_key())
    with open_engine(settings) as engine:
        times, record = asyncio.run(long_prompt_among_streams(engine, streams, long_prompt))
    before, during = gaps_around_s(times, record)
    yield {
        "part": "long",
        "who": f"engine {options.dtype}",
        "streams": NUM_STREAMS,
        "prompt_tokens": LONG_PROMPT_TOKENS,
        "gap_p50_before_ms": round(percentile(before, 50) * 1000, 2),
        "gap_p50_during_ms": round(percentile(during, 50) * 1000, 2),
        "gap_p95_during_ms": round(percentile(during, 95) * 1000, 2),
        "gap_max_during_ms": round(max(during) * 1000, 2),
        "ttft_of_the_long_ms": round(record.ttft_s * 1000, 1),
    }


def memory(options: argparse.Namespace) -> Iterator[Row]:
    """In a process of its own, which has done nothing else."""
    settings = _settings(options, MEMORY_SLOTS, MEMORY_CONTEXT_TOKENS, PICTURE_TOKENS)
    settings = dataclasses.replace(settings, prefix_cache_bytes=MEMORY_PREFIX_BYTES)
    yield {"part": "memory", "who": f"engine {options.dtype}", **measure_memory(settings)}


MEASURES = {"sweep": sweep, "step": step, "long": long, "memory": memory}


def _settings(options: argparse.Namespace, slots: int, context_tokens: int, image_tokens: int) -> EngineSettings:
    return EngineSettings(
        checkpoint=options.checkpoint,
        family=options.family,
        dtype=options.dtype,
        device=options.device,
        num_threads=options.num_threads,
        num_slots=slots,
        context_tokens=context_tokens,
        image_tokens=image_tokens,
    )


def _new_key() -> str:
    return secrets.token_hex(8)


# ------------------------------------------------------------------------------------- bars


def verdicts(rows: list[Row]) -> list[Verdict]:
    found = []
    for row in rows:
        if row["part"] == "step" and row["batch"] in (1, 16):
            bar = Bar(f"step's ceiling, batch {row['batch']}, {row['positions']} positions", 60, 75, "%")
            found.append(bar.judge(100 * float(str(row["share_of_ceiling"]))))
        if row["part"] == "long":
            bar = Bar("gaps of 8 streams while 4,000 tokens are read, over those before", 2, 1.5, is_ceiling=True)
            found.append(bar.judge_ratio(float(str(row["gap_p50_during_ms"])), float(str(row["gap_p50_before_ms"]))))
        if row["part"] == "memory":
            bar = Bar("memory beyond weights and KV cache", 600, 400, "MB", is_ceiling=True)
            found.append(bar.judge(float(str(row["beyond_mb"]))))
    return found


# ------------------------------------------------------------------------------------- the command


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=_parts, default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--batches", type=_numbers, default="1,2,4,8,16,32", help="requests at a time")
    parser.add_argument("--positions", type=_numbers, default="160,330", help="lengths at which steps are measured")
    parser.add_argument("--checkpoint", type=Path, help="without: one is made")
    parser.add_argument("--family", default="smolvlm", help="of the checkpoint")
    parser.add_argument("--dtype", choices=tuple(BYTES_PER_VALUE), default="bfloat16", help="of the engine")
    parser.add_argument("--generate-dtypes", type=_words, default="float32,bfloat16", help='of `generate`; "": without')
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--num-threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")
    add_report_options(parser)
    options = parser.parse_args(words)
    if min(options.positions) <= STEP_PROMPT_TOKENS + STEP_WITHIN:
        parser.error(f"--positions: more than {STEP_PROMPT_TOKENS + STEP_WITHIN}")
    unknown = [dtype for dtype in options.generate_dtypes if dtype not in BYTES_PER_VALUE]
    if unknown:
        parser.error(f"--generate-dtypes: {unknown[0]!r} is none of {', '.join(BYTES_PER_VALUE)}")
    if options.checkpoint is None:
        options.checkpoint = cached_checkpoint(1)
    return options


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _parts(text: str) -> list[str]:
    unknown = [part for part in _words(text) if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; there is {', '.join(PARTS)}")
    return _words(text)


if __name__ == "__main__":
    sys.exit(main())
