"""`retina chat` loads what it needs, and says at once when there is no such model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.errors import UnknownModel
from deployments.fakes import FakeGenerator


@pytest.fixture
def config(tmp_path: Path) -> Path:
    args = {
        "data_dir": str(tmp_path / "data"),
        "models": [{"name": name, "family": "fake"} for name in ("one", "another")],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"args": args}]}))
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were opened."""
    names: list[str] = []

    def open_noted(config: object, model: str, encoder: object) -> FakeGenerator:
        names.append(model)
        return FakeGenerator(model)

    monkeypatch.setattr("deployments.local.open_generator", open_noted)
    return names


def chat(config: Path, *words: str) -> str:
    run = CliRunner().invoke(app, ["chat", "-c", str(config), "-q", "hello", *words], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    return run.stdout


def test_only_the_model_that_answers_is_loaded(config: Path, loaded: list[str]) -> None:
    assert "hello" in chat(config)
    assert "hello" in chat(config, "-m", "another")
    assert loaded == ["one", "another"]


def test_a_session_goes_on_with_the_model_it_had(config: Path, loaded: list[str]) -> None:
    chat(config, "-m", "another", "-s", "mine")
    loaded.clear()
    chat(config, "-s", "mine")
    assert loaded == ["one", "another"]


def test_an_unknown_model_is_named_before_anything_is_loaded(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["chat", "-c", str(config), "-m", "gpt-9"])
    assert isinstance(run.exception, UnknownModel)
    assert "one, another" in str(run.exception)
    assert not loaded
