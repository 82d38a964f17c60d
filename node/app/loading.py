"""Loading on a thread of its own, while the reactor serves.

The import of the team's code may take long, or for ever. After its time it is refused, whatever it does. A
loop in Python is then ended from outside; what hangs elsewhere (``time.sleep``, a connection) is left
to itself, and until it has ended nothing else is loaded, so that no threads pile up.
"""

from __future__ import annotations

import ctypes
import linecache
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.reactor import Clock, Timer
from spread.node.app.load import Loaded, LoadError, forget, load, team_frame

__all__ = ["Apart", "LoadReactor"]

INTERRUPT_SECONDS = 0.1
"""Between two attempts to end an import that has had its time: it may catch what it is ended with."""

INTERRUPTS = 50

SWITCH_SECONDS = 0.0002
"""So long an import may keep the reactor waiting for Python's lock at a time, unless it keeps that in C.

Python's own 5 ms are paid at many a system call of the reactor: beside a loop, pairs of ``send`` and ``recv``
came to 4 % of their usual number with that, and to 37 % with this."""

log = Logger("spread.node.app.loading")


class LoadReactor(Clock, Protocol):
    """``IReactorTime`` and ``IReactorFromThreads``, as far as they are called here."""

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None: ...


class _Interrupted(BaseException):
    """Ends an import that has had its time. No ``Exception``, which the team's code may catch."""


class Apart:
    """Loads on threads, one at a time."""

    def __init__(self, reactor: LoadReactor, seconds: float) -> None:
        """:param seconds: how long an import may take."""
        self._reactor = reactor
        self._seconds = seconds
        self._left: _Loading | None = None

    def load(self, spec: str, generation: int) -> Deferred[Loaded]:
        """``spread.node.app.load.load`` on a thread. Call it when the last one has fired.

        The Deferred fails with what that raises.

        :raises LoadError: also when the import has not ended in time, with the line where it is then, or when
            one that was refused for that still runs.
        """
        left = self._left
        if left is not None and left.is_alive:
            hint = "wait for its end, or restart the shard"
            return _failed(LoadError(f"an import that was refused before still runs{left.place()}; {hint}"))
        self._left = loading = _Loading(self._reactor, spec, generation, self._seconds)
        return loading.start()


class _Loading:
    """One import on its thread."""

    def __init__(self, reactor: LoadReactor, spec: str, generation: int, seconds: float) -> None:
        self._reactor = reactor
        self._spec = spec
        self._generation = generation
        self._seconds = seconds
        self._result: Deferred[Loaded] = Deferred()
        self._timer: Timer | None = None
        self._attempts = 0
        self._nanoseconds = 0
        self._switch_seconds = sys.getswitchinterval()
        # A daemon: an import that never ends does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"load {spec}", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> Deferred[Loaded]:
        self._timer = self._reactor.callLater(self._seconds, self._late)
        sys.setswitchinterval(min(SWITCH_SECONDS, self._switch_seconds))
        self._thread.start()
        return self._result

    def place(self) -> str:
        """Where in the team's code it is, as the end of a sentence; "" if it is nowhere there."""
        frame = self._team_frame()
        if frame is None:
            return ""
        file = frame.f_code.co_filename
        linecache.checkcache(file)  # it has changed since an older version was looked at
        line = linecache.getline(file, frame.f_lineno).strip()
        return f" at {os.path.basename(file)}:{frame.f_lineno}" + (f" ({line})" if line else "")

    def _frame(self) -> FrameType | None:
        return sys._current_frames().get(self._thread.ident or 0)

    def _team_frame(self) -> FrameType | None:
        return team_frame(self._frame(), self._generation)

    # -- on the thread

    def _run(self) -> None:
        ended: Callable[[], None]
        try:
            try:
                ended = partial(self._ended, load(self._spec, self._generation))
            # Whatever it is: the thread is the last one that could tell it, and the reactor is told.
            except BaseException as error:
                ended = partial(self._ended, error)
            self._reactor.callFromThread(ended)
        except _Interrupted:
            # In the very moment in which it was done. Nobody waits for it any more.
            log.debug("an import ended as it was interrupted")

    # -- on the reactor's

    def _ended(self, outcome: Loaded | BaseException) -> None:
        sys.setswitchinterval(self._switch_seconds)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._result.called:
            # Too late; what it was refused for has been told.
            forget(self._generation)
        elif isinstance(outcome, BaseException):
            self._result.errback(Failure(outcome))
        else:
            self._result.callback(outcome)

    def _late(self) -> None:
        place = self.place()
        self._has_run()  # from now on it counts
        self._timer = self._reactor.callLater(0, self._interrupt)
        self._result.errback(
            Failure(LoadError(f"the import still runs after {self._seconds:g} s{place}; it was given up"))
        )

    def _interrupt(self) -> None:
        if not self.is_alive:
            sys.setswitchinterval(self._switch_seconds)
            return
        self._attempts += 1
        if self._attempts > INTERRUPTS:
            log.error("an import cannot be ended{place}; its thread is left behind", place=self.place())
            return
        if self._has_run() and not self._is_in_other_import():
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(_Interrupted))
        self._timer = self._reactor.callLater(INTERRUPT_SECONDS, self._interrupt)

    def _has_run(self) -> bool:
        """Whether the thread has had the processor since it was looked at last.

        One that waits in C takes an exception when it wakes, and not before. Until then all threads are asked
        for it at each call and turn of a loop, and in Python 3.11, while calls are traced, as for coverage,
        those who are asked do not get on.
        """
        before = self._nanoseconds
        try:
            with open(f"/proc/self/task/{self._thread.native_id}/schedstat", "rb") as file:
                self._nanoseconds = int(file.read().split()[0])
        except (OSError, ValueError, IndexError):
            return sys.gettrace() is None  # no Linux
        return self._nanoseconds > before

    def _is_in_other_import(self) -> bool:
        """Whether it is amid the import of a module that is not the team's, which others may need whole."""
        frame, team = self._frame(), self._team_frame()
        while frame is not None and frame is not team:
            if frame.f_code.co_name == "<module>":
                return True
            frame = frame.f_back
        return False


def _failed(error: Exception) -> Deferred[Loaded]:
    result: Deferred[Loaded] = Deferred()
    result.errback(Failure(error))
    return result
