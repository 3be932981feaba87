"""`retina demo streaming` measures every configured model and says what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from deployments.config import parse_config
from deployments.errors import InvalidRequest
from deployments.fakes import FakeGenerator
from deployments.local import open_graph
from deployments.streaming_demo import measure

PICTURE = Path(__file__).parents[2] / "demo" / "images" / "red-circle.png"


def config_of(folder: Path, *models: str) -> Path:
    args = {
        "data_dir": str(folder / "data"),
        "models": [{"name": name, "family": "fake"} for name in models],
        "images": {"store": "memory"},
        "session_router": {"store": "memory"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [{"args": args}]}))
    return path


def test_the_table_has_a_row_for_every_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, "one", "another")
    run = CliRunner().invoke(app, ["demo", "streaming", "-c", str(config), "-i", str(PICTURE), "--rounds", "1"])
    assert run.exit_code == 0, run.output
    assert "whole answer" in run.stdout
    assert "one" in run.stdout
    assert "another" in run.stdout


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    arguments = ["demo", "streaming", "-c", str(config_of(tmp_path, "one")), "-i", str(tmp_path / "gone.png")]
    run = CliRunner().invoke(app, arguments)
    assert isinstance(run.exception, InvalidRequest)
    assert "gone.png" in str(run.exception)


async def test_the_first_token_is_waited_for_and_not_the_whole_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_slow(config: object, model: str, encoder: object) -> FakeGenerator:
        return FakeGenerator(model, word_delay_s=0.02)

    monkeypatch.setattr("deployments.local.open_generator", open_slow)
    memory = {"store": "memory"}
    config = parse_config(
        {
            "data_dir": str(tmp_path),
            "models": [{"name": "slow", "family": "fake"}],
            "images": memory,
            "session_router": memory,
        }
    )
    async with open_graph(config) as graph:
        image = await graph.add_image(PICTURE.read_bytes())
        [waits] = [one async for one in measure(graph, image, "what is this", rounds=2, max_new_tokens=10)]
    assert waits.model == "slow"
    assert waits.num_tokens == 10  # words of 20 ms each
    assert waits.full_ms >= 200
    assert 20 <= waits.first_token_ms < waits.full_ms / 2
    assert waits.share == pytest.approx(waits.first_token_ms / waits.full_ms)
