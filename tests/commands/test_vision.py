"""`retina caption`, `query`, `detect` and `point`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands.stage import CIRCLE, config_file, retina, served
from typer.testing import CliRunner, Result

from deployments.cli import app
from deployments.errors import InvalidImage, InvalidRequest

SIZE = "The picture has 256 x 256 pixels."


def run(config: Path, command: str, *words: str, expect: int = 0) -> Result:
    done = CliRunner().invoke(app, [command, "-c", str(config), *words], catch_exceptions=False)
    assert done.exit_code == expect, done.output
    return done


def test_a_caption(config: Path, loaded: list[str]) -> None:
    assert run(config, "caption", str(CIRCLE)).stdout == f"A normal caption in en. {SIZE}\n"
    short = run(config, "caption", str(CIRCLE), "-l", "short", "--language", "ja", "-m", "another", "--timings")
    assert short.stdout == f"A short caption in ja. {SIZE}\n"
    assert "first token" in short.stderr
    assert loaded == ["one", "another"]


def test_several_pictures_each_with_its_name(config: Path, loaded: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    done = run(config, "caption", str(CIRCLE), str(broken), str(CIRCLE), expect=3)
    assert done.stdout == f"{CIRCLE}:\nA normal caption in en. {SIZE}\n" * 2
    assert "broken.png: unsupported_image" in done.stderr.replace("\n", "")


def test_one_broken_picture_is_a_failed_request(config: Path, loaded: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InvalidImage):
        run(config, "caption", str(broken))


def test_json_has_a_line_for_each_picture(config: Path, loaded: list[str]) -> None:
    lines = run(config, "caption", "--json", str(CIRCLE), str(CIRCLE)).stdout.splitlines()
    replies = [json.loads(line) for line in lines]
    assert [reply["image"] for reply in replies] == [str(CIRCLE)] * 2
    assert replies[0]["caption"].endswith(SIZE)
    assert replies[0]["usage"]["image_tokens"] == 16


def test_a_question_with_its_thoughts_beside_it(config: Path, loaded: list[str]) -> None:
    done = run(config, "query", str(CIRCLE), "What is it?", "--reasoning")
    assert done.stdout == f'You asked: "What is it?". {SIZE}\n'
    assert "The question has 3 words." in done.stderr


@pytest.mark.parametrize(("command", "fields"), [("detect", "x_min y_min x_max y_max"), ("point", "x y")])
def test_places_as_a_table_and_as_json(config: Path, loaded: list[str], command: str, fields: str) -> None:
    words = (str(CIRCLE), "dot", "--max-objects", "2")
    heading, *rows = run(config, command, *words).stdout.splitlines()
    reply = json.loads(run(config, command, *words, "--json").stdout)
    places = reply["objects" if command == "detect" else "points"]
    assert heading.split() == fields.split()
    assert [[float(cell) for cell in row.split()] for row in rows] == [
        [round(value, 4) for value in place.values()] for place in places
    ]
    assert 1 <= len(rows) <= 2


def test_options_that_the_service_would_refuse(config: Path, loaded: list[str]) -> None:
    assert "--language" in run(config, "caption", str(CIRCLE), "--language", "klingon", expect=2).stderr
    with pytest.raises(InvalidRequest, match="prompt stands in place of length"):
        run(config, "caption", str(CIRCLE), "--prompt", "x", "--length", "short")


def test_a_model_without_the_skill_is_refused_before_it_is_loaded(tmp_path: Path, loaded: list[str]) -> None:
    models = [{"name": "seer", "family": "smolvlm", "checkpoint": "nowhere"}]
    with pytest.raises(InvalidRequest, match="detect"):
        run(config_file(tmp_path, models=models), "detect", str(CIRCLE), "dot")
    assert not loaded


async def test_the_same_with_a_server(tmp_path: Path, loaded: list[str]) -> None:
    async with served(config_file(tmp_path)) as (address, _):
        ended = await retina(tmp_path, "caption", str(CIRCLE), "-l", "long", "--server", address)
    assert (ended.code, ended.out) == (0, f"A long caption in en. {SIZE}\n")
