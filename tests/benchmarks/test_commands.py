"""Every script explains itself, without loading what only measuring needs, and refuses what it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import generator, graph
from benchmarks.bars import IN_PROCESS, PEER, RETINA

ROOT = Path(__file__).parents[2]
SCRIPTS = ("card", "checkpoint", "generator", "graph", "load")
HEAVY = ("torch", "transformers", "ray", "aiohttp", "matplotlib", "fastapi")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_comes_at_once(script: str) -> None:
    code = (
        f"import sys; from benchmarks.{script} import main\n"
        "try: main(['--help'])\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert f"python -m benchmarks.{script}" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--scenario", "unique,unknown"], "there is no scenario 'unknown'; there is unique,"),
        (["--set", "generator.num_slots"], "is not KEY=VALUE"),
        (["--peer", "llama=http://127.0.0.1:1"], "is not NAME=URL,MODEL"),
        (["--url", "http://127.0.0.1:1"], "--tiles 1 or --tiles 5"),
        (["--tiles", "3"], "1 or 5"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_graph_refuses_what_it_does_not_know(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        graph.parse(words)

    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--parts", "sweep,unknown"], "there is no part 'unknown'; there is sweep,"),
        (["--generate-dtypes", "int8"], "'int8' is none of float32"),
    ],
)
def test_generator_refuses_what_it_does_not_know(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        generator.parse(words)

    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], [RETINA, f"{PEER} float32", f"{PEER} bfloat16"]),
        (["--no-peer"], [RETINA]),
        (["--no-peer", "--in-process"], [RETINA, IN_PROCESS]),
        (["--no-peer", "--no-served", "--in-process"], [IN_PROCESS]),
        (["--url", "http://127.0.0.1:1", "--tiles", "1", "--peer-dtypes", "float32"], [RETINA, f"{PEER} float32"]),
        (["--no-peer", "--peer", "llama=http://127.0.0.1:1,m"], [RETINA, "llama"]),
    ],
)
def test_graph_measures_what_it_is_told_to(words: list[str], names: list[str]) -> None:
    assert [target.name for target in graph.targets(graph.parse(words))] == names


def test_figures_that_others_disturbed_are_told() -> None:
    row = {"service": RETINA, "tiles": 1, "scenario": "unique", "users": 16, "wall_s": 10.0}

    assert graph.disturbance(row | {"other_cpu_s": 0.9}, 2) == ""
    assert "10% of the machine" in graph.disturbance(row | {"other_cpu_s": 2.0}, 2)
    assert graph.disturbance(row, 2) == ""  # nobody counted


def test_generator_judges_steps_long_prompts_and_memory() -> None:
    rows: list[dict[str, object]] = [
        {"part": "sweep", "batch": 16, "tokens_per_s": 100.0},
        {"part": "step", "batch": 16, "positions": 160, "share_of_ceiling": 0.7},
        {"part": "step", "batch": 4, "positions": 160, "share_of_ceiling": 0.1},
        {"part": "long", "gap_p50_before_ms": 10.0, "gap_p50_during_ms": 25.0},
        {"part": "memory", "beyond_mb": 350.0},
    ]

    assert [(verdict.value, verdict.word) for verdict in generator.verdicts(rows)] == [
        (70.0, "reached"),
        (2.5, "MISSED"),
        (350.0, "beyond"),
    ]
