"""`retina chat`: one question, a conversation from a pipe, what is loaded for it, and wrong usage."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands.stage import CIRCLE, config_file
from typer.testing import CliRunner, Result

from deployments.cli import app
from deployments.errors import InvalidRequest, UnknownModel


def chat(config: Path, *words: str, typed: Sequence[str] = ()) -> Result:
    given = "".join(f"{line}\n" for line in typed)
    return CliRunner().invoke(app, ["chat", "-c", str(config), *words], input=given, catch_exceptions=False)


def ask(config: Path, *words: str) -> str:
    run = chat(config, "-q", "hello", *words)
    assert run.exit_code == 0, run.output
    return run.stdout


def test_only_the_model_that_answers_is_loaded(config: Path, loaded: list[str]) -> None:
    assert ask(config) == 'You asked: "hello".\n'
    assert "hello" in ask(config, "-m", "another")
    assert loaded == ["one", "another"]


def test_a_session_goes_on_with_the_model_it_had(config: Path, loaded: list[str]) -> None:
    ask(config, "-m", "another", "-s", "mine")
    loaded.clear()
    reply = json.loads(ask(config, "-s", "mine", "--json"))
    assert loaded == ["one", "another"]
    assert (reply["model_used"], reply["conversation_length"]) == ("another", 4)


def test_an_unknown_model_is_named_before_anything_is_loaded(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["chat", "-c", str(config), "-m", "gpt-9"])
    assert isinstance(run.exception, UnknownModel)
    assert "one, another" in str(run.exception)
    assert not loaded


def test_sampling_and_timings(config: Path, loaded: list[str]) -> None:
    run = chat(config, "-q", "one two three", "-i", str(CIRCLE), "--max-new-tokens", "3", "--timings")
    assert run.stdout == 'You asked: "one\n'
    assert "3 tokens" in run.stderr
    assert "picture 16 tokens from" in run.stderr


def test_a_picture_that_is_not_there_is_named(config: Path, loaded: list[str]) -> None:
    run = CliRunner().invoke(app, ["chat", "-c", str(config), "-q", "x", "-i", "nowhere.png"])
    assert isinstance(run.exception, InvalidRequest)
    assert "nowhere.png: No such file" in str(run.exception)


def test_json_is_for_one_question(config: Path, loaded: list[str]) -> None:
    run = chat(config, "--json")
    assert run.exit_code == 2
    assert "--question" in run.stderr
    assert not loaded


@pytest.mark.parametrize("option", [("--temperature", "3"), ("--max-new-tokens", "0"), ("--server", "ftp://x")])
def test_values_out_of_range_are_wrong_usage(config: Path, loaded: list[str], option: tuple[str, str]) -> None:
    run = chat(config, "-q", "x", *option)
    assert run.exit_code == 2
    assert option[0] in run.stderr
    assert not loaded


# ------------------------------------------------------------------------------------- a conversation


def test_a_piped_conversation_over_two_models_and_a_picture(config: Path, loaded: list[str]) -> None:
    lines = ["hello", "/model another", f'/image "{CIRCLE}"', "what is it?", "/history"]
    run = chat(config, typed=lines)
    assert run.exit_code == 0, run.output
    answers = [
        'You asked: "hello".',
        'You asked: "what is it?". The picture has 256 x 256 pixels. I remember 2 messages',
    ]
    first, second, *history = run.stdout.splitlines()
    assert first == answers[0]
    assert second.startswith(answers[1])
    assert history == ["user: hello", f"assistant: {first}", "user: [picture] what is it?", f"assistant: {second}"]
    assert loaded == ["one", "another"]


def test_another_model_keeps_a_session_that_lives_in_memory(tmp_path: Path, loaded: list[str]) -> None:
    config = config_file(tmp_path, session_router={"store": "memory"})
    run = chat(config, typed=["hello", "/model another", "again", "/history"])
    assert run.stdout.count("user: ") == 2
    assert "I remember 2 messages" in run.stdout


def test_sessions_are_listed_resumed_and_deleted(config: Path, loaded: list[str]) -> None:
    ask(config, "-s", "first-session")
    ask(config, "-s", "second-session", "-m", "another")
    run = chat(config, typed=["/sessions", "/resume second", "go on", "/delete", "/delete first-session", "/sessions"])
    assert run.exit_code == 0, run.output
    assert run.stdout.index("second-session") < run.stdout.index("first-session")  # last used first
    assert "I remember 2 messages" in run.stdout
    assert "session second-session is deleted" in run.stderr
    assert "session first-session is deleted" in run.stderr
    assert run.stderr.endswith("there are no sessions\n")


def test_new_leaves_the_session_and_keeps_the_model(config: Path, loaded: list[str]) -> None:
    run = chat(config, typed=["/model another", "hello", "/new", "again", "/sessions", "/models", "/quit", "unheard"])
    assert "I remember" not in run.stdout
    assert "unheard" not in run.stdout
    assert len(re.findall("[0-9a-f]{32}", run.stdout)) == 2  # sessions, each with its id
    assert "another  caption, query, detect, point (chosen)" in run.stdout
    assert "one  caption, query, detect, point (default)" in run.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nonsense", "unknown command /nonsense; there are /image"),
        ("/image", "which picture?"),
        ("/image nowhere.png", "nowhere.png: No such file"),
        ("/model gpt-9", "one, another"),
        ("/resume", "which session?"),
        ("/resume nobody", "session_not_found"),
        ("/delete", "which session?"),
        ("/new now", "takes nothing"),
    ],
)
def test_a_failure_ends_nothing_but_a_script_learns_of_it(
    config: Path, loaded: list[str], line: str, said: str
) -> None:
    run = chat(config, typed=[line, "still there?"])
    assert said in run.stderr
    assert 'You asked: "still there?".' in run.stdout
    assert run.exit_code == 1


def test_the_beginning_of_an_id_must_name_one_session(config: Path, loaded: list[str]) -> None:
    ask(config, "-s", "same-1")
    ask(config, "-s", "same-2")
    run = chat(config, typed=["/resume same"])
    assert "2 sessions have ids that begin with same" in run.stderr


def test_help_names_every_command(config: Path, loaded: list[str]) -> None:
    run = chat(config, typed=["/help"])
    for command in ("/image PATH", "/model NAME", "/models", "/history", "/new", "/sessions", "/resume ID", "/quit"):
        assert command in run.stderr
