"""States come back bit by bit, are replaced as a whole, and are gone on with by the same options alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from deployments.errors import ConfigError
from deployments.training import state as state_file
from deployments.training.metrics_log import MetricsLog
from deployments.training.state import (
    FILE,
    RunState,
    Standing,
    fresh_state,
    load_state,
    read_identity,
    require_same,
    save_state,
    write_whole,
)

pytestmark = pytest.mark.torch

IDENTITY = {"base": "a" * 64, "steps": 10, "patience": None, "learning_rate": 0.1}


def tensors(seed: int) -> dict[str, object]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in ("linear_1.weight", "linear_1.bias")}


def assert_equal(one: RunState, other: RunState) -> None:
    import torch

    assert one.standing == other.standing
    for group in ("projector", "best", "first_moments", "second_moments"):
        here, there = getattr(one, group), getattr(other, group)
        assert here.keys() == there.keys(), group
        assert all(torch.equal(here[name], there[name]) for name in here), group


def test_a_state_comes_back(tmp_path: Path) -> None:
    standing = Standing(step=7, evaluated_step=5, best_step=5, first_loss=2.0, best_loss=0.1 + 0.2, tokens=99)
    state = RunState(standing, *(tensors(seed) for seed in range(4)))
    save_state(tmp_path, IDENTITY, state)
    assert_equal(load_state(tmp_path), state)
    assert read_identity(tmp_path) == IDENTITY


def test_a_fresh_state_has_one_projector_and_no_moments(tmp_path: Path) -> None:
    state = fresh_state(tensors(0))
    save_state(tmp_path, IDENTITY, state)
    assert_equal(load_state(tmp_path), state)
    assert load_state(tmp_path).first_moments == {}


def test_without_a_file_there_is_no_run(tmp_path: Path) -> None:
    assert read_identity(tmp_path) is None
    assert read_identity(tmp_path / "missing") is None


def test_nothing_is_pickled(tmp_path: Path) -> None:
    import safetensors

    save_state(tmp_path, IDENTITY, fresh_state(tensors(0)))
    [path] = tmp_path.iterdir()
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.metadata()) == {"version", "identity", "standing"}


@pytest.mark.parametrize("damage", ["cut", "version", "foreign", "empty"])
def test_a_damaged_state_says_how_to_go_on(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == "version":
        monkeypatch.setattr(state_file, "VERSION", "0")
    save_state(tmp_path, IDENTITY, fresh_state(tensors(0)))
    monkeypatch.undo()
    path = tmp_path / FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    if damage == "foreign":
        import safetensors.torch

        safetensors.torch.save_file(tensors(0), path)
    if damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match="--restart"):
        load_state(tmp_path)


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_file.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def test_all_differences_are_named(tmp_path: Path) -> None:
    require_same(IDENTITY, dict(IDENTITY), tmp_path)
    with pytest.raises(ConfigError) as caught:
        require_same(IDENTITY, {**IDENTITY, "steps": 20, "base": "b" * 64, "patience": 3, "new": 1}, tmp_path)
    message = caught.value.message
    assert "steps was 10 and is 20" in message
    assert 'base was "aaaaaaaaaaa… and is "bbbbbbbbbbb…' in message
    assert "patience was null and is 3" in message
    assert "new was null and is 1" in message
    assert "learning_rate" not in message
    assert "--restart" in message


def test_the_log_forgets_what_came_after_the_state(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, Standing())
    log.write(step=0, validation_loss=9.0)
    for step in (1, 2, 3, 4):
        log.write(step=step, loss=1.0)
        if step % 2 == 0:
            log.write(step=step, validation_loss=0.5)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"step": 5, "lo')  # killed while it wrote
    again = MetricsLog(path, Standing(step=4, evaluated_step=2))
    again.write(step=4, validation_loss=0.4)
    again.close()
    lines = path.read_text().splitlines()
    assert [line for line in lines if "validation" in line] == [
        '{"step": 0, "validation_loss": 9.0}',
        '{"step": 2, "validation_loss": 0.5}',
        '{"step": 4, "validation_loss": 0.4}',
    ]
    assert sum('"loss"' in line for line in lines) == 4


def test_standings_are_plain_values() -> None:
    assert all(isinstance(value, int | float | str | None) for value in dataclasses.asdict(Standing()).values())
