"""The output folder of a run: whose it is, the run that it holds, and how the checkpoint gets into it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import ConfigError
from deployments.training.checkpoint import RECORD, draft_checkpoint, publish, read_record
from deployments.training.state import RunState, load_state, read_identity, require_same, save_state

if TYPE_CHECKING:
    import torch

WORK = ".training"  # folder inside the output, gone when the run is finished


@dataclass(frozen=True, slots=True)
class Output:
    """An output folder that this process alone trains into."""

    folder: Path
    identity: Mapping[str, object]  # what decides the result: a run is gone on with by the same alone
    restart: bool  # a finished run that the folder holds does not count

    @property
    def work(self) -> Path:
        return self.folder / WORK

    def find_record(self) -> Mapping[str, object] | None:
        """Of a run that is finished; None while there is one to go on with. Raises ConfigError when it was another."""
        if self.restart or read_identity(self.work) is not None:
            return None
        record = read_record(self.folder)
        if record is not None:
            before = record["identity"]
            assert isinstance(before, dict)
            require_same(before, self.identity, self.folder)
        return record

    def find_state(self) -> RunState | None:
        """Of a run that was interrupted. Raises ConfigError when that was asked to do something else."""
        before = read_identity(self.work)
        if before is None:
            return None
        require_same(before, self.identity, self.folder)
        return load_state(self.work)

    def save(self, state: RunState) -> None:
        save_state(self.work, self.identity, state)

    def finish(self, base: Path, projector: Mapping[str, torch.Tensor], record: Mapping[str, object]) -> None:
        """Put the checkpoint into the folder. May be repeated until it is done. Raises OSError, ConfigError."""
        draft = self.work / "draft"
        draft_checkpoint(base, draft, projector, {**record, "identity": self.identity})
        publish(draft, self.folder)
        shutil.rmtree(self.work)


@contextlib.contextmanager
def open_output(folder: Path, base: Path, identity: Mapping[str, object], *, restart: bool) -> Iterator[Output]:
    """Make the folder if it is not there, and keep other processes out of it meanwhile.

    Raises ConfigError when it holds what no run of ours put there, or when another process is training into it.
    """
    require_ours(folder, base)
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        if restart:
            _empty(work)
        try:
            yield Output(folder, identity, restart)
        finally:
            _remove_if_empty(work, folder)  # of a run that failed before it saved anything


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: a lock file would have to be removed, by whom?
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process is training into {folder}", "out") from error


def require_ours(folder: Path, base: Path) -> None:
    """Raises ConfigError unless the folder may be written: it is not there, empty, or what a run of ours left."""
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; --out names a folder", "out")
    if folder.resolve().is_relative_to(base.resolve()):
        raise ConfigError(f"{folder} is the base itself or inside it: name another --out", "out")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / WORK).is_dir() and not (folder / RECORD).is_file():
        raise ConfigError(
            f"{folder} holds files that no training run wrote: name a folder that is empty or not there", "out"
        )


def _empty(work: Path) -> None:
    shutil.rmtree(work)
    work.mkdir()


def _remove_if_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()
