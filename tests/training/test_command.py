"""The command as people run it: options, exit codes, Ctrl-C and kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deployments.training.options import Places

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
WAIT_S = 120


def arguments(places: Places, *more: str) -> list[str]:
    given = {"data": places.data, "base": places.base, "out": places.out, "cache-dir": places.cache}
    settings = {"batch-size": 4, "evaluate-every": 50, "validation-share": 0.2, "threads": 1, "device": "cpu"}
    return [
        "train-projector",
        *(word for name, value in {**given, **settings}.items() for word in (f"--{name}", str(value))),
        *more,
    ]


def retina(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = "from deployments.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def wait_for_steps(out: Path, process: subprocess.Popen[str], count: int) -> None:
    """Blocks until the log has that many lines."""
    deadline = time.monotonic() + WAIT_S
    log = out / "metrics.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        os.sched_yield()


def invoke(*words: str) -> Any:
    from typer.testing import CliRunner

    from deployments.cli import app

    return CliRunner().invoke(app, words)


def test_killed_and_interrupted_runs_end_bit_equal(places: Places, tmp_path: Path, spoken: Any) -> None:
    from deployments.training.checkpoint import read_projector

    words = arguments(places, "--steps", "300", "--save-every", "7")
    killed = retina(*words)
    wait_for_steps(places.out, killed, 40)
    killed.kill()
    killed.communicate()
    assert not (places.out / "config.json").exists()

    interrupted = retina(*words)
    wait_for_steps(places.out, interrupted, 100)
    interrupted.send_signal(signal.SIGINT)
    _, told = interrupted.communicate(timeout=WAIT_S)
    assert interrupted.returncode == 130
    assert "the same command goes on from there" in told
    lines = [json.loads(line) for line in (places.out / "metrics.jsonl").read_text().splitlines()]
    assert f"interrupted after step {max(line['step'] for line in lines)}" in told

    assert invoke(*words).exit_code == 0
    whole = replace(places, out=tmp_path / "whole")
    assert invoke(*arguments(whole, "--steps", "300", "--save-every", "7")).exit_code == 0
    here, there = read_projector(places.out), read_projector(whole.out)
    assert all(here[name].equal(there[name]) for name in here)


def test_a_plain_kill_saves_as_ctrl_c_does() -> None:
    from deployments.training.command import stop_on_signals

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as is_stopped:
        assert not is_stopped()
        signal.raise_signal(signal.SIGTERM)
        assert is_stopped()
        assert signal.getsignal(signal.SIGTERM) is before  # the next one acts at once
    with stop_on_signals() as is_stopped:
        signal.raise_signal(signal.SIGINT)
        assert is_stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_told(places: Places) -> None:
    result = invoke(*arguments(places, "--epochs", "2"))
    assert result.exit_code == 0
    assert "12 of 12 pictures are new to the feature cache" in result.stderr
    assert "step 0: validation loss" in result.stderr
    assert f"{places.out} holds the projector of step" in result.stderr
    again = invoke(*arguments(places, "--epochs", "2"))
    assert again.exit_code == 0
    assert "it was there already" in again.stderr
    other = invoke(*arguments(places, "--epochs", "3"))
    assert other.exit_code == 1
    assert other.exception.message.count("epochs was 2 and is 3") == 1
    assert invoke(*arguments(places, "--epochs", "3", "--restart")).exit_code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--validation", "held_out.jsonl"), "--validation-share"),
        (("--batch-size", "0"), "--batch-size"),
        (("--dtype", "int8"), "--dtype"),
        (("--steps", "0"), "--steps"),
    ],
)
def test_wrong_usage(places: Places, words: tuple[str, ...], told: str) -> None:
    result = invoke(*arguments(places, *words))
    assert result.exit_code == 2
    assert told in result.stderr


def test_errors_end_the_process_with_their_reason(places: Places) -> None:
    (places.data.parent / "0.png").unlink()
    process = retina(*arguments(places))
    _, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert told.startswith("config_error: the data cannot be trained on:")
    assert "pairs.jsonl, line 1: picture" in told
    assert "Traceback" not in told


def test_the_command_imports_nothing_heavy() -> None:
    program = (
        "import sys, deployments.cli; print([m for m in ('torch', 'transformers', 'PIL', 'ray') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_ctrl_c_before_training_is_told(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.training.features import FeatureStore

    def interrupt(*args: object) -> Callable[[], None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "encode", interrupt)
    result = invoke(*arguments(places))
    assert result.exit_code == 130
    assert "interrupted; features that were taken" in result.stderr
    assert not places.out.exists()
