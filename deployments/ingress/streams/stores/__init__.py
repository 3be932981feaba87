"""What a stream store must do: keep logs of entries, each written by one owner at a time and read by anybody.

A store knows nothing of events or turns; it keeps text. Times are Unix times, given by whoever calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from deployments.errors import Overloaded

RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class StreamKey:
    tenant: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Proves who may write to a log: its owner since this epoch. Whoever takes it over makes the epoch one more."""

    key: StreamKey
    epoch: int


class HoldLost(Exception):
    """Somebody else took the log over, or it is gone. Never leaves the streams."""


@dataclass(frozen=True, slots=True)
class NewLog:
    key: StreamKey
    owner: str
    plan: str  # what whoever takes it over must know
    is_background: bool  # goes on without readers
    expires_s: float  # gone from then on, unless a sign of life or the end says otherwise


@dataclass(frozen=True, slots=True)
class LogView:
    """What a reader sees."""

    entries: tuple[str, ...]  # behind the one asked for
    num_entries: int  # all there are
    epoch: int
    alive_s: float  # the owner's last sign of life
    has_ended: bool
    expires_s: float


@dataclass(frozen=True, slots=True)
class TakenLog:
    hold: Hold
    plan: str
    entries: tuple[str, ...]
    is_background: bool
    is_stop_asked: bool


@dataclass(frozen=True, slots=True)
class Sign:
    """What others left for the owner."""

    hold: Hold
    is_stop_asked: bool
    read_s: float  # last sign of a reader in another process; 0: none yet


@dataclass(frozen=True, slots=True)
class StreamCounts:
    running: int
    ended: int


class StreamStore(Protocol):
    """Methods may be cancelled; the change then happens wholly or not at all. All raise PartUnavailable."""

    kind: str
    is_shared: bool  # other processes may read and take over

    async def create(self, new: NewLog, entry: str, max_logs: int, now_s: float) -> Hold:
        """A log with its first entry. Where there are too many, expired ones go first. Raises Overloaded."""
        ...

    async def append(self, hold: Hold, entries: Sequence[str], ended_until_s: float | None = None) -> None:
        """With `ended_until_s` these are the last ones, and the log expires then. Raises HoldLost."""
        ...

    async def read(self, key: StreamKey, after: int) -> LogView | None:
        """Entries behind the one with index `after`; None for a log that does not exist."""
        ...

    async def ask_stop(self, key: StreamKey) -> bool:
        """Leave it for the owner to see; False for a log that does not exist."""
        ...

    async def touch(self, keys: Collection[StreamKey], now_s: float) -> None:
        """Leave for the owners that somebody reads."""
        ...

    async def beat(self, owner: str, now_s: float, expires_s: float) -> tuple[Sign, ...]:
        """A sign of life for all logs of this owner that have not ended, and what others left there."""
        ...

    async def release(self, hold: Hold) -> None:
        """Whoever wants may take the log over at once. Changes nothing when the hold is lost."""
        ...

    async def take_over(self, hold: Hold, owner: str, now_s: float, alive_before_s: float) -> TakenLog | None:
        """Become the owner if the epoch is still the hold's, the log has not ended, and the owner's last sign of life
        was before `alive_before_s`; otherwise None.
        """
        ...

    async def orphans(self, alive_before_s: float) -> tuple[Hold, ...]:
        """Background logs that have not ended and whose owner gave no sign since then."""
        ...

    async def expire(self, now_s: float) -> int:
        """Delete what is past its time; returns how many went."""
        ...

    async def count(self) -> StreamCounts: ...

    async def close(self) -> None:
        """Closing again does nothing."""
        ...


def too_many(max_logs: int) -> Overloaded:
    return Overloaded(
        f"{max_logs} streams are kept already (ingress.streams.max_streams); ask without resumable, or later",
        "resumable",
        RETRY_AFTER_S,
    )
