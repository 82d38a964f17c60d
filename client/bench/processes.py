"""The processes that are measured: the CPU and memory they use, and whether they live. Linux only."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from spread.client.bench.errors import ServerDied

__all__ = ["Server", "Usage", "Watch", "is_redis", "machine_usage", "pin", "resident_bytes", "usage_of"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Server:
    """A process that is measured."""

    name: str
    pid: int
    is_redis: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a process, all of its threads, from its beginning."""

    total: float
    user: float
    system: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.total - other.total, self.user - other.user, self.system - other.system)

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.total + other.total, self.user + other.user, self.system + other.system)


def usage_of(pid: int) -> Usage:
    """The sum is that of the process's CPU clock, in nanoseconds. /proc/PID/stat counts in hundredths of a
    second, too coarse for a short run; how user and system share the sum is from there.

    :raises ProcessLookupError: there is no such process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        total = time.clock_gettime(_cpu_clock(pid))
    except OSError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    user, system = int(fields[11]) / _TICKS, int(fields[12]) / _TICKS
    return Usage(total, user, system)


def _cpu_clock(pid: int) -> int:
    """The clock of another process, as clock_getcpuclockid(3) makes it; Python does not have that."""
    return ~pid << 3 | 2


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM. The kernel's for its sockets is not in it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except OSError:
        raise ProcessLookupError(f"there is no process {pid}") from None


def is_redis(pid: int) -> bool:
    """By the name of its program."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    return name.startswith(("redis", "valkey"))


def pin(pid: int, cpus: Iterable[int]) -> None:
    """Keep a process, and all threads it has now, on some CPUs."""
    cpus = set(cpus)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cpus)


def machine_usage() -> tuple[float, float]:
    """CPU seconds that the machine was busy, whoever with, and that the host gave to others."""
    with open("/proc/stat", "rb") as lines:
        user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, lines.readline().split()[1:9])
    return (user + nice + system + interrupts + soft) / _TICKS, stolen / _TICKS


class Watch:
    """Sees processes end while something else is waited for."""

    def __init__(self) -> None:
        self._ends: dict[int, Callable[[], str]] = {}

    def add(self, pid: int, story: Callable[[], str]) -> None:
        """:param story: what to tell when it has ended.

        :raises ProcessLookupError: there is no such process.
        """
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ProcessLookupError(f"there is no process {pid}") from None
        except OSError:  # a kernel before 5.3, or a sandbox: its end is noticed by its connections
            return
        self._ends[fd] = story

    def wait(self, fd: int, seconds: float) -> bool:
        """Wait until a file can be read; ``False`` if it cannot within so many seconds.

        :raises ServerDied: a process has ended.
        """
        poll = select.poll()
        for each in (fd, *self._ends):
            poll.register(each, select.POLLIN)
        ready = {each for each, _ in poll.poll(max(0.0, seconds) * 1000)}
        self._tell(ready)
        return fd in ready

    def check(self, seconds: float = 0.0) -> None:
        """:raises ServerDied: a process has ended, or ends within so many seconds."""
        if not self._ends:
            return
        poll = select.poll()
        for each in self._ends:
            poll.register(each, select.POLLIN)
        self._tell({each for each, _ in poll.poll(seconds * 1000)})

    def _tell(self, ready: set[int]) -> None:
        for fd, story in self._ends.items():
            if fd in ready:
                raise ServerDied(story())

    def close(self) -> None:
        for fd in self._ends:
            os.close(fd)
        self._ends.clear()
