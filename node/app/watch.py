"""Who holds up the reactor: names the line of the team's code, and ends it when it goes on for too long.

A thread looks every ``LOOK_SECONDS`` at what the main thread is in. That costs the main thread nothing but
a note of each hook that it enters and leaves. What the team's code does outside of hooks, as the callback of
a Deferred, is found by its frames on the stack of a turn of the reactor that takes long.

Ending works by a signal of our own to the main thread, whose handler raises ``HookBlocked`` if that very
hook is still on, and if what runs is the team's code or something that it has called outside of Spread and
Twisted: those are never left half done.
"""

from __future__ import annotations

import linecache
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, perf_counter
from types import FrameType
from typing import Any

from twisted.logger import Logger

from spread.node.reactor import Turns

__all__ = ["LOOK_SECONDS", "Activity", "HookBlocked", "Watch"]

LOOK_SECONDS = 0.025

SIGNAL: int = getattr(signal, "SIGRTMAX", getattr(signal, "SIGUSR2", 0))
"""Nobody else's: real-time signals have no meaning to the system."""

_OURS = ("spread.node.", "spread.hub.", "twisted.")


class HookBlocked(BaseException):
    """Ends a hook that has held up the shard for too long. No ``Exception``, which the team's code may
    catch."""


class Activity:
    """A piece of the team's code that runs now.

    :param turn: when the turn of the reactor began in which it was found; 0: it was noted, not found.
    """

    __slots__ = ("began", "is_told", "name", "turn")

    def __init__(self, name: str, turn: float = 0.0) -> None:
        self.name = name
        self.began = monotonic()
        self.is_told = False
        self.turn = turn


class Watch:
    """Used on the main thread, but for what its own thread does.

    :param block_seconds: a piece of code that runs for so long is logged.
    :param end_seconds: and ended after so long.
    :param turns: those of the reactor, if somebody counts them: to find what runs outside of hooks.
    """

    log = Logger("spread.node.app.watch")

    def __init__(self, block_seconds: float, end_seconds: float, turns: Turns | None = None) -> None:
        self.blocks = 0
        """Pieces of code that have held up the shard."""
        self.is_team: Callable[[FrameType], bool] = lambda frame: False
        """The frame is of the team's code."""
        self._block_seconds = block_seconds
        self._end_seconds = end_seconds
        self._turns = turns
        self._first_turn = 0.0 if turns is None else turns.began_at
        self._now: Activity | None = None
        self._found: Activity | None = None
        self._victim: Activity | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = threading.main_thread().ident or 0
        self._before: Any = None

    # -- what runs ------------------------------------------------------------------------------------------

    def enter(self, name: str) -> Activity | None:
        """The team's code is called now. Gives what ``leave`` needs."""
        before, self._now = self._now, Activity(name)
        return before

    def leave(self, before: Activity | None) -> None:
        """It has returned."""
        self._now = before

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """The same around a block."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.leave(before)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """The same; ended, it raises ``TimeoutError``, with the line where it was."""
        try:
            with self.named(name):
                yield
        except HookBlocked as blocked:
            raise TimeoutError(str(blocked)) from None

    # -- begin and end --------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """It looks."""
        return self._thread is not None

    def start(self) -> None:
        """Begin to look. Code is ended only when this is called on the main thread."""
        if self._thread is not None:
            return
        self._over.clear()
        if threading.get_ident() == self._main and SIGNAL:
            self._before = signal.signal(SIGNAL, self._interrupt)
        self._thread = threading.Thread(target=self._look, name="watch of hooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._over.set()
        thread.join()
        if self._before is not None:
            signal.signal(SIGNAL, self._before)
            self._before = None

    # -- on the thread --------------------------------------------------------------------------------------

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            noted = self._now
            now = noted or self._find()
            if now is None:
                continue
            seconds = monotonic() - now.began
            if seconds >= self._block_seconds and not now.is_told:
                place = self._place(sys._current_frames().get(self._main))
                if self._now is not noted:
                    continue
                now.is_told = True
                self.blocks += 1
                self.log.warn(
                    "{hook} holds up the shard, for {seconds:.3f} s so far, {place}",
                    hook=now.name,
                    seconds=seconds,
                    place=place,
                )
            if seconds >= self._end_seconds and self._before is not None:
                self._victim = now
                signal.pthread_kill(self._main, SIGNAL)

    def _find(self) -> Activity | None:
        """The team's code outside of hooks, if it runs now and did when this was last looked at."""
        turns, found = self._turns, self._found
        self._found = None
        if turns is None:
            return None
        turn = turns.began_at
        if turn == self._first_turn:
            return None  # so far nobody counts them
        if perf_counter() - turn < LOOK_SECONDS:
            return None  # as nearly always
        frame = sys._current_frames().get(self._main)
        while frame is not None and not self.is_team(frame):
            frame = frame.f_back
        if frame is None or turns.began_at != turn:
            return None
        self._found = found if found is not None and found.turn == turn else Activity("a callback", turn)
        return self._found

    def _is_on_still(self, activity: Activity | None) -> bool:
        if activity is None or not activity.turn:
            return activity is not None and activity is self._now
        return self._now is None and self._turns is not None and self._turns.began_at == activity.turn

    def _place(self, frame: FrameType | None) -> str:
        while frame is not None and not self.is_team(frame):
            frame = frame.f_back
        if frame is None:
            return "at no line of its own"
        file, line = frame.f_code.co_filename, frame.f_lineno or 0
        source = linecache.getline(file, line).strip()
        return f"at {_short(file)}:{line} ({source})" if source else f"at {file}:{line}"

    # -- the handler, on the main thread --------------------------------------------------------------------

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = self._victim
        if now is None or not self._is_on_still(now):
            return
        at = frame
        while at is not None and not self.is_team(at):
            if str(at.f_globals.get("__name__", "")).startswith(_OURS):
                return  # the next look tries again
            at = at.f_back
        if at is not None:
            seconds = monotonic() - now.began
            raise HookBlocked(f"{now.name} was ended after {seconds:.1f} s {self._place(at)}")


def _short(file: str) -> str:
    try:
        return os.path.relpath(file)
    except OSError:  # a release takes away the directory of the one before it, in which this still runs
        return file
