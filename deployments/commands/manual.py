"""`retina manual`: every command with its arguments and options as Markdown, read from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import typer

from deployments.commands.talk_commands import COMMANDS as TALK_COMMANDS
from deployments.commands.terminal import EXIT_CODES, reflow

if TYPE_CHECKING:
    from collections.abc import Sequence

INTRODUCTION = """# The command line

`retina COMMAND --help` says the same in the terminal; this page is what `retina manual` prints. Answers and data go to
stdout, everything else to stderr. Colours are for terminals alone, and `NO_COLOR=1` turns them off. `retina
--install-completion` teaches the shell to complete commands and options.

Commands that ask a model work with a service that runs already (`--server`, or `RETINA_SERVER` for all of them) or,
without one, with the models of a config in their own process.
"""


def manual(context: typer.Context) -> None:
    """Print every command with its options, as Markdown."""
    root = context.find_root()
    print(manual_page(root.command), end="")


def manual_page(program: Any) -> str:
    """Of Typer's command tree."""
    exit_codes = EXIT_CODES.removeprefix("Exit codes: ").rstrip(".").split("; ")
    rows = "\n".join(f"| {code} | {meaning} |" for code, meaning in (one.split(" ", 1) for one in exit_codes))
    table = f"\n## Exit codes\n\n| code | meaning |\n|---|---|\n{rows}\n"
    return INTRODUCTION + table + "".join(_section(name, command) for name, command in _commands("retina", program))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of the tree, in the order of the help."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for own, one in below.items():
        if not one.hidden:
            yield from _commands(f"{name} {own}", one)


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and one.name != "help"]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(_metavar(one) for one in arguments)])
    parts = [f"\n## {name}\n\n```\n{usage}\n```\n\n{reflow(command.help)}\n"]
    if arguments:
        parts.append(_table("argument", [(_metavar(one), one.help or "") for one in arguments]))
    if options:
        parts.append(_table("option", [(_names(one), _meaning(one)) for one in options]))
    if command.name == "chat":
        parts.append(_table("line", [(one.usage, one.meaning) for one in TALK_COMMANDS.values()]))
    if command.epilog:
        lines = command.epilog.split("\n\n")[1:]
        parts.append("\n```bash\n" + "\n".join(lines) + "\n```\n")
    return "".join(parts)


def _table(heading: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = "\n".join(f"| `{name}` | {meaning} |" for name, meaning in rows)
    return f"\n| {heading} | |\n|---|---|\n{lines}\n"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _names(option: Any) -> str:
    names = ", ".join(option.opts)
    return names if option.is_flag else f"{names} {option.metavar or _kind(option.type_descriptor.annotation)}"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "\\|".join(get_args(annotation))
    kinds = get_args(annotation) or (annotation,)  # of a list: what it is of
    return str(kinds[0].__name__).upper()


def _meaning(option: Any) -> str:
    parts = [option.help or ""]
    limits = [(sign, getattr(option, name)) for sign, name in (("≥", "min"), ("≤", "max"))]
    shown = ", ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
    if shown:
        parts.append(f"({shown})")
    if option.envvar:
        parts.append(f"Or the environment's `{option.envvar}`.")
    default = option.default
    if default is not None and default is not False and not callable(default):
        parts.append(f"Default: `{default}`.")
    elif option.required:
        parts.append("Needed.")
    return " ".join(part for part in parts if part).replace("|", "\\|")
