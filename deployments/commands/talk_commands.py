"""What a line that begins with a slash does in `retina chat`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from deployments.commands.talk import Talk
from deployments.commands.terminal import errors, output, printable, say, write
from deployments.errors import InvalidRequest, SessionNotFound

if TYPE_CHECKING:
    from deployments.ingress.schemas import HistoryMessage, SessionBody

NUM_SHOWN_SESSIONS = 20
MAX_TITLE_CHARS = 48


@dataclass(frozen=True, slots=True)
class Command:
    usage: str
    meaning: str
    run: Callable[[Talk, str], Awaitable[None]]  # with what stands behind the command's name


async def obey(talk: Talk, line: str) -> None:
    """Raises InvalidRequest for what is no command."""
    name, _, rest = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise InvalidRequest(f"unknown command {name}; there are {', '.join(COMMANDS)} and /quit")
    await command.run(talk, rest.strip())


async def _image(talk: Talk, path: str) -> None:
    if not path:
        raise InvalidRequest("which picture? /image PATH", "image")
    unquoted = path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"" else path
    await talk.show(Path(unquoted))
    say("the next question shows this picture")


async def _new(talk: Talk, rest: str) -> None:
    _take_nothing("/new", rest)
    talk.begin_anew()
    say("a new session begins with the next question")


async def _model(talk: Talk, name: str) -> None:
    if name:
        await talk.use(name)
    say(f"model: {talk.model or 'the one that the session used last, or the default'}")


async def _models(talk: Talk, rest: str) -> None:
    _take_nothing("/models", rest)
    for model in await talk.service.models():
        marks = [*(["default"] if model.is_default else []), *(["chosen"] if model.name == talk.model else [])]
        write(f"{model.name}  {', '.join(model.skills)}{''.join(f' ({mark})' for mark in marks)}\n")


async def _history(talk: Talk, rest: str) -> None:
    _take_nothing("/history", rest)
    if talk.session_id is None:
        say("nothing was said yet")
        return
    history = await talk.service.client.history(talk.session_id)
    for message in history.history:
        _show(message)


def _show(message: HistoryMessage) -> None:
    words = "".join("[picture] " if part.type == "image" else part.text for part in message.content)
    output.print(printable(f"{message.role}:"), style="bold", end=" ", markup=False)
    write(f"{words}\n")


async def _sessions(talk: Talk, rest: str) -> None:
    _take_nothing("/sessions", rest)
    listed = await talk.service.client.sessions(NUM_SHOWN_SESSIONS)
    if not listed.sessions:
        say("there are no sessions")
        return
    table = Table("", Column("session", overflow="fold"), "last used", "model", "begins with", box=None)
    for one in listed.sessions:
        mark = "*" if one.session_id == talk.session_id else ""
        title = one.title if len(one.title) <= MAX_TITLE_CHARS else f"{one.title[: MAX_TITLE_CHARS - 1]}…"
        cells = (one.session_id, one.updated[:16].replace("T", " "), one.model, " ".join(title.split()))
        table.add_row(mark, *(_plain(cell) for cell in cells))
    output.print(table)
    if listed.has_more:
        say("and older ones; /resume takes their ids as well")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))


async def _resume(talk: Talk, given: str) -> None:
    if not given:
        raise InvalidRequest("which session? /resume ID; /sessions lists them", "session_id")
    session = await _find(talk, given)
    if session is not None and talk.model != session.model:
        await talk.use(session.model)
    session_id = session.session_id if session is not None else given
    history = await talk.service.client.history(session_id)
    talk.session_id = session_id
    for message in history.history:
        _show(message)


async def _find(talk: Talk, given: str) -> SessionBody | None:
    """The session with this id, or the one whose id begins so; None: not among those that are listed."""
    sessions = (await talk.service.client.sessions()).sessions
    exact = [one for one in sessions if one.session_id == given]
    found = exact or [one for one in sessions if one.session_id.startswith(given)]
    if len(found) > 1:
        raise SessionNotFound(f"{len(found)} sessions have ids that begin with {given}; give more of it", "session_id")
    return found[0] if found else None


async def _delete(talk: Talk, given: str) -> None:
    session_id = given or talk.session_id
    if session_id is None:
        raise InvalidRequest("which session? /delete ID; without an id, the one that is open", "session_id")
    if given:
        session = await _find(talk, given)
        session_id = session.session_id if session is not None else given
    await talk.service.client.delete_session(session_id)
    if session_id == talk.session_id:
        talk.begin_anew()
    say(f"session {session_id} is deleted")


async def _help(talk: Talk, rest: str) -> None:
    _take_nothing("/help", rest)
    for command in COMMANDS.values():
        errors.print(f"{command.usage:<16}{command.meaning}", markup=False, soft_wrap=True)
    errors.print(f"{'/quit':<16}leaves, as does the end of the input", markup=False, soft_wrap=True)
    errors.print("Ctrl-C stops the answer that is being given; a second one leaves", markup=False, soft_wrap=True)


def _take_nothing(name: str, rest: str) -> None:
    if rest:
        raise InvalidRequest(f"{name} takes nothing behind it")


COMMANDS: Mapping[str, Command] = {
    "/image": Command("/image PATH", "shows a picture with the next question", _image),
    "/model": Command("/model NAME", "lets another model answer, in the same session", _model),
    "/models": Command("/models", "lists the models", _models),
    "/history": Command("/history", "shows what is kept of this session", _history),
    "/new": Command("/new", "begins a new session", _new),
    "/sessions": Command("/sessions", "lists the sessions used last", _sessions),
    "/resume": Command("/resume ID", "goes on with a session; the beginning of an id will do", _resume),
    "/delete": Command("/delete [ID]", "forgets a session, without an id this one", _delete),
    "/help": Command("/help", "shows this", _help),
}
