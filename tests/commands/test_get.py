"""`retina get`: one page, here or elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands.stage import config_file, retina, served
from typer.testing import CliRunner

from deployments.cli import app
from deployments.errors import NotFound


def test_a_page_of_a_graph_that_is_opened_for_it(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["get", "/-/engine", "-c", str(config)], catch_exceptions=False)
    assert run.exit_code == 0
    assert set(json.loads(run.stdout)) == {"one", "another"}


def test_a_page_that_is_not_there_is_shown_and_fails(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["get", "/nowhere", "-c", str(config)])
    assert json.loads(run.stdout)["error"]["code"] == "not_found"
    with pytest.raises(NotFound):
        raise run.exception or AssertionError


async def test_a_page_of_a_server(tmp_path: Path, loaded: list[str]) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        ended = await retina(tmp_path, "get", "/readyz", "--server", address + "/")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["ready"] is True
