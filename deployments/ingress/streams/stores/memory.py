"""Logs of streams in this process: gone with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from deployments.ingress.streams.stores import (
    Hold,
    HoldLost,
    LogView,
    NewLog,
    Sign,
    StreamCounts,
    StreamKey,
    TakenLog,
    too_many,
)


@dataclass(slots=True)
class _Log:
    new: NewLog
    owner: str
    entries: list[str]
    alive_s: float
    expires_s: float
    epoch: int = 0
    read_s: float = 0
    is_stop_asked: bool = False
    has_ended: bool = False

    @property
    def hold(self) -> Hold:
        return Hold(self.new.key, self.epoch)


@dataclass(slots=True)
class MemoryStreamStore:
    kind = "memory"
    is_shared = False
    _logs: dict[StreamKey, _Log] = field(default_factory=dict)

    async def create(self, new: NewLog, entry: str, max_logs: int, now_s: float) -> Hold:
        await self.expire(now_s)
        assert new.key not in self._logs, "ids of streams are drawn"
        if sum(key.tenant == new.key.tenant for key in self._logs) >= max_logs:
            raise too_many(max_logs)
        log = self._logs[new.key] = _Log(new, new.owner, [entry], now_s, new.expires_s)
        return log.hold

    async def append(self, hold: Hold, entries: Sequence[str], ended_until_s: float | None = None) -> None:
        log = self._logs.get(hold.key)
        if log is None or log.epoch != hold.epoch or log.has_ended:
            raise HoldLost
        log.entries.extend(entries)
        if ended_until_s is not None:
            log.has_ended, log.expires_s = True, ended_until_s

    async def read(self, key: StreamKey, after: int) -> LogView | None:
        log = self._logs.get(key)
        if log is None:
            return None
        new = tuple(log.entries[after + 1 :])
        return LogView(new, len(log.entries), log.epoch, log.alive_s, log.has_ended, log.expires_s)

    async def ask_stop(self, key: StreamKey) -> bool:
        log = self._logs.get(key)
        if log is not None:
            log.is_stop_asked = True
        return log is not None

    async def touch(self, keys: Collection[StreamKey], now_s: float) -> None:
        for key in keys:
            if (log := self._logs.get(key)) is not None:
                log.read_s = now_s

    async def beat(self, owner: str, now_s: float, expires_s: float) -> tuple[Sign, ...]:
        mine = [log for log in self._logs.values() if log.owner == owner and not log.has_ended]
        for log in mine:
            log.alive_s, log.expires_s = now_s, expires_s
        return tuple(Sign(log.hold, log.is_stop_asked, log.read_s) for log in mine)

    async def release(self, hold: Hold) -> None:
        log = self._logs.get(hold.key)
        if log is not None and log.epoch == hold.epoch:
            log.owner, log.alive_s = "", 0

    async def take_over(self, hold: Hold, owner: str, now_s: float, alive_before_s: float) -> TakenLog | None:
        log = self._logs.get(hold.key)
        if log is None or log.epoch != hold.epoch or log.has_ended or log.alive_s >= alive_before_s:
            return None
        log.owner, log.alive_s, log.epoch = owner, now_s, log.epoch + 1
        return TakenLog(log.hold, log.new.plan, tuple(log.entries), log.new.is_background, log.is_stop_asked)

    async def orphans(self, alive_before_s: float) -> tuple[Hold, ...]:
        return tuple(
            log.hold
            for log in self._logs.values()
            if log.new.is_background and not log.has_ended and log.alive_s < alive_before_s
        )

    async def expire(self, now_s: float) -> int:
        gone = [key for key, log in self._logs.items() if log.expires_s <= now_s]
        for key in gone:
            del self._logs[key]
        return len(gone)

    async def count(self) -> StreamCounts:
        ended = sum(log.has_ended for log in self._logs.values())
        return StreamCounts(len(self._logs) - ended, ended)

    async def close(self) -> None:
        """There is nothing to close."""
