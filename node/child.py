"""A child of a fleet: one shard as its parent sees it. How it is started, heard, stopped and replaced.

A child keeps its number and its sockets for as long as the fleet lives; its process comes and goes. What
state it is in, and what moves it to the next, is the table ``TRANSITIONS``. What to *do* when a process
has died is not decided here: the fleet is told, and calls ``begin``, ``begin_later`` or ``close``.
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.node.listen import FLEET_SOCKETS, pass_on

__all__ = [
    "FLEET_LIFELINE",
    "TRANSITIONS",
    "Check",
    "Child",
    "Ending",
    "Event",
    "Parent",
    "ProcessReactor",
    "Recipe",
    "State",
]

FLEET_LIFELINE = "SPREAD_FLEET_LIFELINE"
"""The environment variable that tells a child which descriptor is its life line."""

LINE_MAX_BYTES = 65536
"""The rest of a longer line is dropped."""

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MOST_SECONDS = 5.0
BACKOFF_JITTER = 0.25
STEADY_SECONDS = 10.0
"""A child that was ready this long starts again as quickly as one that has never died."""

KILL_AFTER_SECONDS = 2.0
"""On top of the time that a clean stop may take."""

CHECK_SECONDS = 30.0
"""A check that takes longer is killed, and has failed."""

OUTPUT_SECONDS = 0.5
"""How long the output of a child that has exited is read, when a process that it started holds it open."""

log = Logger("spread.node.child")


class State(Enum):
    """Where a shard of the fleet is."""

    WAITING = "waiting"
    """No process; one will be started, at once or after a pause."""
    STARTING = "starting"
    """A process that does not take clients yet."""
    READY = "ready"
    STOPPING = "stopping"
    """A process that was asked to end."""
    GONE = "gone"
    """No process, and there will be none."""


class Event(Enum):
    """What moves a shard from one state to the next."""

    BEGIN = "begin"
    READY = "ready"
    STOP = "stop"
    ENDED = "ended"
    CLOSE = "close"


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.WAITING, Event.BEGIN): State.STARTING,
    (State.WAITING, Event.CLOSE): State.GONE,
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.STARTING, Event.ENDED): State.WAITING,
    (State.READY, Event.STOP): State.STOPPING,
    (State.READY, Event.ENDED): State.WAITING,
    (State.STOPPING, Event.ENDED): State.WAITING,
}
"""All there are. A line that says ``ready`` in any state but ``STARTING`` is passed on, and no event."""


class _Timer(Protocol):
    def active(self) -> bool: ...
    def cancel(self) -> None: ...


class ProcessReactor(Protocol):
    """``IReactorTime`` and ``IReactorProcess``, as far as they are called here."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Callable[..., Any], /) -> _Timer: ...
    def spawnProcess(
        self, processProtocol: Any, executable: Any, /, *, args: Any, env: Any, childFDs: Any
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a process ended. Neither code nor signal: it could not be started."""

    text: str
    code: int | None = None
    signal: int | None = None

    @classmethod
    def of(cls, reason: Failure) -> Ending:
        error = reason.value
        if not isinstance(error, ProcessTerminated):
            return cls("exit code 0", code=0)
        if error.signal is None:
            return cls(f"exit code {error.exitCode}", code=error.exitCode)
        names = {one.value: one.name for one in signal.Signals}
        return cls(f"signal {names.get(error.signal, error.signal)}", signal=error.signal)

    @property
    def is_clean(self) -> bool:
        """As asked. SIGTERM itself ends a process that is too young to have a handler for it."""
        return self.code == 0 or self.signal == signal.SIGTERM


class _Lines:
    """Cuts a stream into lines of at most ``LINE_MAX_BYTES``."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that ``data`` completes, without their ends."""
        *ends, rest = data.split(b"\n")
        lines: list[str] = []
        for end in ends:
            self._keep(end)
            lines += self.finish() or [""]
        self._keep(rest)
        return lines

    def finish(self) -> list[str]:
        """What has come of a line that has no end; empty if nothing has."""
        line = self._partial.decode("utf-8", "replace")
        self._partial.clear()
        return [line] if line else []

    def _keep(self, part: bytes) -> None:
        self._partial += part[: LINE_MAX_BYTES - len(self._partial)]


class _Backoff:
    """Seconds to wait before the next start: each time about double."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._seconds = BACKOFF_FIRST_SECONDS

    def next_seconds(self) -> float:
        # Less than the full time by chance, so that shards that died together do not start together.
        seconds = self._seconds * (1 - BACKOFF_JITTER * self._random())
        self._seconds = min(self._seconds * 2, BACKOFF_MOST_SECONDS)
        return seconds

    def reset(self) -> None:
        self._seconds = BACKOFF_FIRST_SECONDS


class _Process(ProcessProtocol):
    """One process of a shard. ``line`` gets what it says, then ``ended``, once, how it ended."""

    def __init__(
        self, reactor: ProcessReactor, line: Callable[[str], None], ended: Callable[[Ending], None]
    ) -> None:
        self._reactor = reactor
        self._line = line
        self._ended = ended
        self._lines = _Lines()
        self._giving_up: _Timer | None = None

    @property
    def _wire(self) -> Any:
        return self.transport

    def send(self, name: str | signal.Signals) -> None:
        """Send the signal ``name``: ``TERM`` or ``KILL``, or one of the numbers of ``signal``."""
        try:
            self._wire.signalProcess(name)
        except ProcessExitedAlready:
            log.debug("a process had exited before the signal {name}", name=name)

    def outReceived(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._line(line)

    def processExited(self, reason: Failure) -> None:
        # Its pipes end with it, unless it left a child of its own behind, to which we owe nothing.
        self._giving_up = self._reactor.callLater(OUTPUT_SECONDS, self._wire.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        if self._giving_up is not None and self._giving_up.active():
            self._giving_up.cancel()
        for line in self._lines.finish():
            self._line(line)
        self._ended(Ending.of(reason))


class Check:
    """One process that tells, by exit code 0, that a shard could start with what is configured now.

    It gets none of the sockets. What it prints is dropped; what is wrong it says on standard error.
    """

    def __init__(self, reactor: ProcessReactor, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._command = command
        self._environ = environ
        self._process = _Process(reactor, lambda _: None, self._has_ended)
        self._timer: _Timer | None = None
        self._ended: Deferred[Ending] = Deferred()

    def run(self) -> Deferred[Ending]:
        """Start it; call this once. Fires with how it ended, and never fails."""
        try:
            self._reactor.spawnProcess(
                self._process,
                self._command[0],
                args=self._command,
                env=self._environ,
                childFDs={0: "w", 1: "r", 2: 2},
            )
        except OSError as error:
            self._has_ended(Ending(f"it could not be started: {error}"))
        else:
            self._timer = self._reactor.callLater(CHECK_SECONDS, self.kill)
        return self._ended

    def kill(self) -> None:
        """End it, if it runs."""
        self._process.send("KILL")

    def _has_ended(self, ending: Ending) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._ended.callback(ending)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the children of a fleet are run."""

    command: Sequence[str]
    """What runs one shard; ``--shard N`` is added."""
    environ: Mapping[str, str]
    stop_seconds: float
    """How long a clean stop may take; the process is killed two seconds later."""
    start_seconds: float | None
    """A process that is not ready by then is killed. ``None``: as long as it takes."""


class Parent(Protocol):
    """What a child calls."""

    def child_said(self, line: str) -> None:
        """A line of its standard output, without its end."""

    def child_ready(self) -> None:
        """A child takes clients now."""

    def child_ended(self, child: Child, before: State, ending: Ending) -> None:
        """Its process has ended, in the state ``before``. It is ``WAITING`` now, and nothing will happen
        until the parent calls one of its methods."""


class Child:
    """A number of the fleet, its sockets, and the process that has them now."""

    def __init__(
        self,
        reactor: ProcessReactor,
        parent: Parent,
        number: int,
        sockets: Mapping[str, socket.socket],
        recipe: Recipe,
        random: Callable[[], float],
    ) -> None:
        self.number = number
        self.state = State.WAITING
        self.was_ready = False
        """It was, at least once, in the life of the fleet."""
        self._reactor = reactor
        self._parent = parent
        self._sockets = sockets
        self._recipe = recipe
        self._backoff = _Backoff(random)
        self._ready_since = 0.0
        self._process: _Process | None = None
        # What the present state waits for: the end of a pause, of a start or of a stop.
        self._timer: _Timer | None = None
        self._replaced: Deferred[bool] | None = None
        self._reloaded: Deferred[bool] | None = None
        self._has_begun_reload = False
        # What the shard says to its parent. The app may have written there too, and not ended its line.
        self._told = re.compile(rf"(ready|reloading|reloaded|refused) shard={number}(?: |$)")
        # Cancelled when the child has said what became of its reload, or has ended.
        self._reloading: _Timer | None = None

    def begin(self) -> None:
        """Start a process."""
        self._move(Event.BEGIN, self._recipe.start_seconds, self._started_too_slowly)
        process = self._process = _Process(self._reactor, self._said, self._has_ended)
        descriptors, names = pass_on(self._sockets)
        command = [*self._recipe.command, "--shard", str(self.number)]
        try:
            self._reactor.spawnProcess(
                process,
                command[0],
                args=command,
                env={**self._recipe.environ, FLEET_SOCKETS: names, FLEET_LIFELINE: "0"},
                childFDs={0: "w", 1: "r", 2: 2, **descriptors},
            )
        except OSError as error:
            # No memory, no process, no descriptor left: as likely to pass as any other death.
            self._has_ended(Ending(f"it could not be started: {error}"))

    def begin_later(self) -> float:
        """Start a process after a pause; its seconds."""
        seconds = self._backoff.next_seconds()
        self._timer = self._reactor.callLater(seconds, self.begin)
        return seconds

    def replace(self) -> Deferred[bool]:
        """End the process, if there is one, and start another: fires with whether that became ready."""
        replaced = self._replaced = Deferred()
        if self.state is State.WAITING:
            self.begin()
        else:
            self._end()
        return replaced

    def reload(self, seconds: float) -> Deferred[bool]:
        """Ask the process to update its app: fires with whether it says that it has done so.

        :param seconds: how long it may take to say anything. A process that takes no clients is not asked.
        """
        reloaded: Deferred[bool] = Deferred()
        if self.state is not State.READY or self._process is None or self._reloaded is not None:
            reloaded.callback(False)
            return reloaded
        self._reloaded = reloaded
        self._has_begun_reload = False
        self._reloading = self._reactor.callLater(seconds, partial(self._reloaded_too_slowly, seconds))
        self._process.send(signal.SIGUSR1)  # of names, Twisted knows five
        return reloaded

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.state in (State.STARTING, State.READY):
            self._end()
        elif self.state is State.WAITING:
            self.close()

    def close(self) -> None:
        """No process any more."""
        self._move(Event.CLOSE)
        self.settle(False)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send("KILL")

    def settle(self, is_ready: bool) -> None:
        """Tell the one who asked for a replacement, if anyone did."""
        replaced, self._replaced = self._replaced, None
        if replaced is not None:
            replaced.callback(is_ready)

    def _settle_reload(self, is_done: bool) -> None:
        reloaded, self._reloaded = self._reloaded, None
        if self._reloading is not None and self._reloading.active():
            self._reloading.cancel()
        if reloaded is not None:
            reloaded.callback(is_done)

    def close_sockets(self) -> None:
        """Close the copies of the parent. Those of the process, if there is one, stay open."""
        for sock in self._sockets.values():
            sock.close()

    def _end(self) -> None:
        self._move(Event.STOP, self._recipe.stop_seconds + KILL_AFTER_SECONDS, self._stopped_too_slowly)
        if self._process is not None:
            self._process.send("TERM")

    def _move(
        self, event: Event, seconds: float | None = None, then: Callable[[], None] | None = None
    ) -> None:
        """To the next state; ``then`` is called if it is still the same after ``seconds``."""
        self.state = TRANSITIONS[self.state, event]
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if seconds is not None and then is not None:
            self._timer = self._reactor.callLater(seconds, then)

    def _said(self, line: str) -> None:
        self._parent.child_said(line)
        found = self._told.search(line)
        told = found[1] if found else ""
        if told == "reloading":
            self._has_begun_reload = True
        elif told in ("reloaded", "refused") and self._has_begun_reload:
            # Else it is the answer to an earlier request, which nobody waits for any more.
            self._settle_reload(told == "reloaded")
        if told == "ready" and self.state is State.STARTING:
            self._move(Event.READY)
            self._ready_since = self._reactor.seconds()
            self.was_ready = True
            self.settle(True)
            self._parent.child_ready()

    def _has_ended(self, ending: Ending) -> None:
        before = self.state
        self._process = None
        self._settle_reload(False)
        self._move(Event.ENDED)
        if before is State.READY and self._reactor.seconds() - self._ready_since >= STEADY_SECONDS:
            self._backoff.reset()
        self._parent.child_ended(self, before, ending)

    def _started_too_slowly(self) -> None:
        log.error(
            "shard {shard} is not ready after {seconds:g} s: killing it",
            shard=self.number,
            seconds=self._recipe.start_seconds,
        )
        self.kill()

    def _reloaded_too_slowly(self, seconds: float) -> None:
        log.error(
            "shard {shard} has not said after {seconds:g} s what became of its update",
            shard=self.number,
            seconds=seconds,
        )
        self._settle_reload(False)

    def _stopped_too_slowly(self) -> None:
        log.warn("shard {shard} does not stop: killing it", shard=self.number)
        self.kill()
