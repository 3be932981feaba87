"""Lines that a person types, with editing and a history file, or that a pipe brings."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

from deployments.commands.interrupts import Left, on_interrupt
from deployments.commands.stdin_lines import StdinLines
from deployments.errors import InvalidRequest
from deployments.private_folder import make_private_folder

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


class Lines(Protocol):
    async def next_line(self) -> str | None:
        """Without spaces around it; None at the end. Raises Left by Ctrl-C, InvalidRequest for what is no text."""
        ...


def open_lines(commands: Sequence[str], models: Sequence[str]) -> Lines:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TypedLines(commands, models)
    return PipedLines()


def history_file() -> Path:
    """Where typed lines are kept, readable by their owner alone. Raises InvalidRequest."""
    path = Path(typer.get_app_dir("retina")) / "chat_history"
    try:
        make_private_folder(path.parent)
        path.touch(mode=0o600)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}; typed lines are kept there") from error
    return path


class TypedLines:
    def __init__(self, commands: Sequence[str], models: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            history=FileHistory(str(history_file())),
            completer=_completer(commands, models),
            complete_while_typing=False,
            key_bindings=_keys(),
        )

    async def next_line(self) -> str | None:
        try:
            return (await self._session.prompt_async()).strip()
        except EOFError:
            return None


def _completer(commands: Sequence[str], models: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import NestedCompleter, PathCompleter, WordCompleter

    below: dict[str, Completer | None] = dict.fromkeys(commands)
    below["/image"] = PathCompleter(expanduser=True)
    below["/model"] = WordCompleter(list(models))
    return NestedCompleter(below)


def _keys() -> KeyBindings:
    """Ctrl-C empties the line; where it is empty, it leaves."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("c-c")
    @keys.add("<sigint>")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=Left())

    return keys


class PipedLines:
    """Of a pipe, a file, or a terminal whose output goes elsewhere."""

    def __init__(self) -> None:
        self._lines = StdinLines()

    async def next_line(self) -> str | None:
        if sys.stdin.isatty():
            print(PROMPT, end="", file=sys.stderr, flush=True)
        reading = asyncio.ensure_future(self._lines.next_line())
        has_left = False

        def leave() -> None:
            nonlocal has_left
            has_left = reading.cancel()

        with on_interrupt(leave):
            try:
                line = await reading
            except ValueError as error:
                raise InvalidRequest(f"that line cannot be read: {error}") from error
            except asyncio.CancelledError:
                if has_left:
                    raise Left from None
                raise
        return None if line is None else line.strip()
