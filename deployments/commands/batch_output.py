"""The file that a batch writes: a line of JSON for each item that is done, so that a run can be gone on with."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from deployments.errors import InvalidRequest

FIRST_WORDS = b'{"id":'  # that every line of ours begins with


class ItemError(BaseModel):
    model_config = ConfigDict(extra="forbid")

    code: str
    message: str
    param: str | None = None


class ItemLine(BaseModel):
    """`reply` is what the service answers to such a request; exactly one of it and `error` is there."""

    model_config = ConfigDict(extra="forbid")

    id: str
    fingerprint: str
    task: str
    image: str | None
    reply: dict[str, object] | None = None
    error: ItemError | None = None

    @model_validator(mode="after")
    def _has_one_outcome(self) -> ItemLine:
        if (self.reply is None) == (self.error is None):
            raise ValueError("either reply or error")
        return self

    @property
    def key(self) -> tuple[str, str]:
        return self.id, self.fingerprint

    def to_json(self) -> bytes:
        shown = self.model_dump(mode="json", exclude={"error"} if self.error is None else {"reply"})
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"


class Output(Protocol):
    done: set[tuple[str, str]]  # keys of items that are answered already
    failed: set[tuple[str, str]]  # of those that failed before and are not asked again

    def write(self, line: ItemLine) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class StdOutput:
    """Lines to stdout; nothing is known of earlier runs."""

    done: set[tuple[str, str]] = field(default_factory=set)
    failed: set[tuple[str, str]] = field(default_factory=set)

    def write(self, line: ItemLine) -> None:
        sys.stdout.write(line.to_json().decode())
        sys.stdout.flush()

    def close(self) -> None:
        """It is not ours."""


@dataclass(slots=True)
class FileOutput:
    """One run writes at a time. A line is written by one call, so a run that is killed leaves half of one at most."""

    file: IO[bytes]
    done: set[tuple[str, str]] = field(default_factory=set)
    failed: set[tuple[str, str]] = field(default_factory=set)

    def write(self, line: ItemLine) -> None:
        self.file.write(line.to_json())

    def close(self) -> None:
        self.file.close()


def open_output(path: Path, *, retry_failed: bool) -> FileOutput:
    """Makes the file, or goes on with it: half of a last line is cut off, and with `retry_failed` so are failures.

    Raises InvalidRequest for a file that another run writes to or that no batch wrote.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}", "output") from error
    try:
        _lock(path, file)
        output = FileOutput(file)
        kept = b"".join(_sort(path, _whole_lines(path, file), output, retry_failed=retry_failed))
        output.file = _keep(path, file, kept)
    except BaseException:
        file.close()
        raise
    return output


def _lock(path: Path, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidRequest(f"{path}: another batch writes to it just now", "output") from error


def _whole_lines(path: Path, file: IO[bytes]) -> list[bytes]:
    """With their ends; what follows the last of them is the half line of a run that was killed."""
    lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        half = lines.pop()
        if not (half.startswith(FIRST_WORDS) or FIRST_WORDS.startswith(half)):
            raise _foreign(path, len(lines) + 1)
    return lines


def _sort(path: Path, lines: list[bytes], output: FileOutput, *, retry_failed: bool) -> Iterator[bytes]:
    """Lines that stay; what they say is noted in `output`."""
    for number, line in enumerate(lines, start=1):
        try:
            read = ItemLine.model_validate_json(line)
        except ValidationError as error:
            raise _foreign(path, number) from error
        if read.error is None:
            output.done.add(read.key)
            output.failed.discard(read.key)
        elif retry_failed:
            continue
        elif read.key not in output.done:
            output.failed.add(read.key)
        yield line


def _keep(path: Path, file: IO[bytes], kept: bytes) -> IO[bytes]:
    """The file with these lines alone, at its end: cut where that will do, else replaced by another in one step."""
    file.seek(0)
    if file.read().startswith(kept):
        file.truncate(len(kept))
        file.seek(0, os.SEEK_END)
        return file
    beside = path.with_name(f"{path.name}.new")
    other = beside.open("w+b", buffering=0)
    _lock(path, other)
    other.write(kept)
    os.fsync(other.fileno())
    beside.replace(path)
    file.close()
    return other


def _foreign(path: Path, number: int) -> InvalidRequest:
    return InvalidRequest(
        f"{path}: line {number} was not written by retina batch; name another file by --output, or move this one away",
        "output",
    )
