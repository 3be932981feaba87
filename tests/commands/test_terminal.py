"""What is fit for a terminal, and errors as lines of text."""

from __future__ import annotations

import pytest

from deployments.commands.terminal import output, printable, show_error, write
from deployments.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof 日本 é", "plain\ttext\nof 日本 é"),
        ("\x1b[2Jgone", "�[2Jgone"),
        ("a\rb\x07\x9b1m\x7f", "a�b��1m�"),
    ],
)
def test_a_models_words_do_not_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, "�[2J"), (False, "\x1b[2J")])
def test_pipes_get_what_was_said(
    is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "_force_terminal", is_terminal)
    write("\x1b[2J")
    assert capsys.readouterr().out == shown


def test_an_error_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(InvalidRequest("[bold]a[/bold] long line " + "x" * 300 + " \x1b[2J"))
    assert capsys.readouterr().err == "invalid_request: [bold]a[/bold] long line " + "x" * 300 + " �[2J\n"
