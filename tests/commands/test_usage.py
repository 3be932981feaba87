"""Help, version, completion and wrong usage of `retina` as a whole."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from commands.stage import ROOT, environment
from typer.testing import CliRunner

from deployments.cli import app
from deployments.commands.manual import manual_page

PROGRAM = typer.main.get_command(app)


def leaves(name: tuple[str, ...], command: object) -> list[tuple[str, ...]]:
    below = getattr(command, "commands", None)
    return [name] if below is None else [leaf for own, one in below.items() for leaf in leaves((*name, own), one)]


EVERY_COMMAND = leaves((), PROGRAM)


def test_there_are_the_commands_of_the_page() -> None:
    assert {" ".join(name) for name in EVERY_COMMAND} >= {"chat", "batch", "bench", "demo conversation", "check"}


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_every_command_and_option_says_what_it_is(words: tuple[str, ...]) -> None:
    command = PROGRAM
    for word in words:
        command = command.commands[word]
    assert command.help
    assert all(one.help for one in command.params), [one.name for one in command.params if not one.help]
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.stdout


def test_the_page_is_what_the_commands_say() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == manual_page(PROGRAM)
    assert CliRunner().invoke(app, ["manual"]).stdout == manual_page(PROGRAM)


def test_version_and_exit_codes() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"retina {version('retina-serve')}\n"
    assert "130 interrupted" in " ".join(CliRunner().invoke(app, ["--help"]).stdout.replace("│", "").split())


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("chat", "--nonsense"),
        ("caption",),
        ("query", "x.png"),
        ("batch", "x.jsonl"),
        ("get", "no-slash"),
        ("bench", "--server", "http://example.com"),
        ("bench", "--users", "0"),
        ("serve", "--in-process", "--port", "70000"),
        ("chat", "--server", "http://127.0.0.1:9", "--config", "configs/fake.yaml"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert done.stdout == ""


def test_colours_are_for_terminals(tmp_path: Path) -> None:
    settings = {key: value for key, value in environment(tmp_path).items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    program = [sys.executable, "-m", "deployments.cli", "get", "/", "-c", "nowhere.yaml"]
    done = subprocess.run(program, capture_output=True, text=True, env=settings, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("config_error: nowhere.yaml: No such file or directory; --config names another")
    assert done.stderr.count("\n") == 1
