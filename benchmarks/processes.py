"""A server's processes: started in a group of their own, counted while they run, and all gone at the end.

Read from /proc, so this is for Linux alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_S = 0.1
END_WITHIN_S = 30.0
MB = 1_000_000
REPLICA_TITLES = ("ray::ServeReplica:", "ray::ProxyActor", "ray::ServeController")


class NotStarted(RuntimeError):
    """A server did not get ready."""


@dataclass(frozen=True, slots=True)
class Stat:
    """One process at one moment."""

    pid: int
    started: int  # clock ticks after boot: with the pid it names the process for good
    parent: int
    cpu_s: float  # of its own, user and system, and of its children that have ended


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server used while something ran, and what it holds afterwards."""

    server_cpu_s: float
    other_cpu_s: float  # of processes that are neither the server's nor ours, and what the host took away
    server_rss_mb: float  # pages that processes share are counted in each of them
    server_pss_mb: float  # shared pages in proportion
    replica_pss_mb: Mapping[str, float]  # of Ray's replicas, by title


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the counts of CPU time stand."""

    by_process: Mapping[tuple[int, int], float]  # pid and start: seconds, of a server
    own_s: float
    machine_s: float  # of all processes of the machine


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """A process and all that descend from it."""

    root: int  # pid

    def stats(self) -> list[Stat]:
        """Those that are there right now; empty when the root is gone."""
        everything = {stat.pid: stat for stat in _all_stats()}
        children: dict[int, list[int]] = {}
        for stat in everything.values():
            children.setdefault(stat.parent, []).append(stat.pid)
        found, queue = [], [self.root]
        while queue:
            pid = queue.pop()
            if pid in everything:
                found.append(everything[pid])
                queue += children.get(pid, [])
        return found

    def moment(self) -> Moment:
        """What `usage_since` takes as the beginning."""
        by_process = {(stat.pid, stat.started): stat.cpu_s for stat in self.stats()}
        return Moment(by_process, time.process_time(), _machine_seconds())

    def usage_since(self, before: Moment) -> Usage:
        stats = self.stats()
        cpu_s = sum(stat.cpu_s - before.by_process.get((stat.pid, stat.started), 0.0) for stat in stats)
        own_s, machine_s = time.process_time() - before.own_s, _machine_seconds() - before.machine_s
        memory = {stat.pid: memory_of(stat.pid) for stat in stats}
        replicas = {title: memory[stat.pid][1] for stat in stats if (title := _replica_title(stat.pid))}
        return Usage(
            server_cpu_s=round(cpu_s, 2),
            other_cpu_s=round(max(machine_s - own_s - cpu_s, 0.0), 2),
            server_rss_mb=round(sum(rss for rss, _ in memory.values()) / MB, 1),
            server_pss_mb=round(sum(pss for _, pss in memory.values()) / MB, 1),
            replica_pss_mb={title: round(pss / MB, 1) for title, pss in sorted(replicas.items())},
        )


def _all_stats() -> Iterator[Stat]:
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            yield stat


def _stat(pid: int) -> Stat | None:
    """None when it has ended, whether or not its parent has taken note. Fields are numbered as in proc_pid_stat(5)."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces; this begins with field 3
    if fields[0] in ("Z", "X"):
        return None
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return Stat(pid, int(fields[19]), int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))


def _machine_seconds() -> float:
    """CPU time that was not idle, of all cores since the machine started."""
    fields = [int(field) for field in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = fields
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> tuple[int, int]:
    """Resident and proportional bytes; 0 for a process that has ended, or that is somebody else's."""
    try:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0, 0
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return sizes.get("Rss:", 0), sizes.get("Pss:", 0)


def _replica_title(pid: int) -> str:
    """What Ray calls the process, without arguments; "" when it is none of Serve's."""
    try:
        title = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return title.split()[0].removeprefix("ray::") if title.startswith(REPLICA_TITLES) else ""


# ------------------------------------------------------------------------------------- starting and ending


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    is_ready: Callable[[], bool],
    ready_within_s: float,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, ready; at the end, however that comes, nothing of it is left.

    Raises NotStarted with the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(process, is_ready, ready_within_s, log)
        yield process
    finally:
        end(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], is_ready: Callable[[], bool], within_s: float, log: Path
) -> None:
    deadline = time.monotonic() + within_s
    while not is_ready():
        if process.poll() is not None:
            raise NotStarted(f"it ended by itself:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise NotStarted(f"not ready within {within_s:g} s:\n{_tail(log)}")
        time.sleep(POLL_S)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C first; what is left after some time, of the group and of all that descended from it, is killed."""
    family = ProcessTree(process.pid).stats()
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_WITHIN_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _kill([stat for stat in family if stat.pid != process.pid])  # Ray puts some of its processes into other groups


def _kill(family: Sequence[Stat]) -> None:
    """Returns when they are gone."""
    for stat in family:
        if _is_same(stat):
            with contextlib.suppress(ProcessLookupError):
                os.kill(stat.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_WITHIN_S
    while any(_is_same(stat) for stat in family) and time.monotonic() < deadline:
        time.sleep(POLL_S / 10)


def _is_same(stat: Stat) -> bool:
    """Whether that process is there, and not another one that got its pid."""
    now = _stat(stat.pid)
    return now is not None and now.started == stat.started
