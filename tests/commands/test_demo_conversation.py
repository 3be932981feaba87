"""`retina demo conversation`: history, picture and models as the script has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.errors import UnknownModel


def test_the_picture_and_what_was_said_go_from_model_to_model(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["demo", "conversation", "-c", str(config)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    answers = [line for line in run.stdout.splitlines() if not line.startswith("you: ")]
    assert [answer.split(":")[0] for answer in answers] == ["one", "one", "one", "another", "one", "one", "another"]
    assert all("256 x 256 pixels" in answer for answer in answers[1:])  # each sees the picture, shown or carried on
    assert "I remember 12 messages" in answers[-1]
    assert run.stdout.count("[blue-square-and-yellow-star.jpg]") == run.stdout.count("[red-circle.png]") == 1
    assert run.stderr.count("first token") == len(answers)
    assert "14 messages were kept" in run.stderr
    assert not (config.parent / "data" / "sessions").exists()


def test_models_are_chosen_and_alone_are_loaded(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["demo", "conversation", "-c", str(config), "-m", "another", "--max-new-tokens", "2"])
    assert run.exit_code == 0, run.output
    assert loaded == ["another"]
    assert run.stdout.count("another: You asked:\n") == 7


def test_an_unknown_model_is_named(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["demo", "conversation", "-c", str(config), "-m", "gpt-9"])
    with pytest.raises(UnknownModel, match="one, another"):
        raise run.exception or AssertionError
    assert not loaded
