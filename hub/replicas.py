"""Waiting until replicas have what was kept, before it is acknowledged.

Redis acknowledges a write before its replicas have it. WAIT tells how many have all that a connection has
written. It blocks its connection, so there is at most one at a time on each, behind all that was kept in its
turn of the reactor; it gives up after ``wait_seconds``, and is asked again after a pause, in which other
commands get through. What is kept meanwhile is waited for by the next one.

What has enough replicas is acknowledged, in the order in which it was sent. What has not at its deadline
fails: it is kept, and may be lost in a failover. When the connection breaks before WAIT has answered, the
publication is sent again as any other with an unknown outcome, and waits anew.

WAIT counts replicas; it does not choose which one is promoted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from twisted.python.failure import Failure

from spread.hub.errors import LinkLost, ReplyError
from spread.hub.reactor import Clock, Timer

__all__ = ["AGAIN_SECONDS", "WAIT_SECONDS", "Lane", "Replicas", "wait_seconds"]

WAIT_SECONDS = 0.2
"""How long WAIT may block a connection."""

AGAIN_SECONDS = 0.1
"""Pause after a WAIT in vain."""

T = TypeVar("T")


def wait_seconds(reply_seconds: float) -> float:
    """How long WAIT may block a connection that is cut after ``reply_seconds`` of silence."""
    return min(WAIT_SECONDS, reply_seconds / 4)


class Lane(Protocol):
    """A connection, as far as it is used here; see ``link.CommandProtocol``."""

    def submit(self, waiter: Any, *command: bytes | str | int | float) -> None: ...
    def cut(self, reason: str) -> None: ...


class Replicas(Generic[T]):
    """Of one connection.

    :param minimum: replicas that must have a publication.
    :param seconds: for one WAIT.
    :param is_kept: the server has answered that it has it, and it is not acknowledged yet.
    :param done: enough replicas have it.
    :param counted: too few, so many.
    :param lost: the connection broke first.
    :param refused: the server does not let us ask, and why.
    """

    def __init__(
        self,
        clock: Clock,
        connection: Lane,
        minimum: int,
        seconds: float,
        *,
        is_kept: Callable[[T], bool],
        done: Callable[[T], None],
        counted: Callable[[T, int], None],
        lost: Callable[[T], None],
        refused: Callable[[T, str], None],
    ) -> None:
        self._clock = clock
        self._connection = connection
        self._minimum = minimum
        self._milliseconds = max(1, round(seconds * 1000))
        self._is_kept = is_kept
        self._done = done
        self._counted = counted
        self._lost = lost
        self._refused = refused
        # Before the WAIT that is on its way, and behind it.
        self._asked: list[T] = []
        self._new: list[T] = []
        self._is_asking = False
        self._timer: Timer | None = None
        self._is_over = False

    @property
    def is_idle(self) -> bool:
        """Nothing waits here."""
        return not (self._asked or self._new or self._is_asking)

    def sent(self, entry: T) -> None:
        """Something that will be kept was sent on the connection."""
        self._new.append(entry)
        if self._timer is None and not self._is_asking:
            self._timer = self._clock.callLater(0, self._ask)

    def stop(self) -> None:
        """The connection is gone. Idempotent."""
        self._is_over = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        entries = self._asked + self._new
        self._asked, self._new = [], []
        for entry in entries:
            if self._is_kept(entry):
                self._lost(entry)

    def _ask(self) -> None:
        self._timer = None
        self._is_asking = True
        self._asked += self._new
        self._new = []
        self._connection.submit(self, b"WAIT", self._minimum, self._milliseconds)

    def callback(self, count: int) -> None:
        """WAIT has answered."""
        self._is_asking = False
        if self._is_over:
            return
        asked, self._asked = self._asked, []
        # Some have failed, or were put off and sent again behind it.
        waiting = [entry for entry in asked if self._is_kept(entry)]
        if count >= self._minimum:
            for entry in waiting:
                self._done(entry)
        else:
            self._asked = waiting
            for entry in waiting:
                self._counted(entry, count)
        if self._is_over or self._timer is not None or self._is_asking:
            return  # somebody published, or stopped, when told
        if self._asked:
            self._timer = self._clock.callLater(AGAIN_SECONDS, self._ask)
        elif self._new:
            self._ask()

    def errback(self, failure: Failure | Exception) -> None:
        """It will not."""
        self._is_asking = False
        error = failure.value if isinstance(failure, Failure) else failure
        is_forbidden = isinstance(error, ReplyError) and (
            error.is_refusal or str(error).startswith("ERR unknown command")
        )
        if is_forbidden:
            asked, self._asked = self._asked, []
            for entry in asked:
                if self._is_kept(entry):
                    self._refused(entry, f"WAIT: {error}")
            if self._new and self._timer is None and not self._is_over:
                self._timer = self._clock.callLater(0, self._ask)
            return
        if not self._is_over:
            self.stop()
            if not isinstance(error, LinkLost):
                # It has become a replica, say: what it had taken may be gone.
                self._connection.cut(f"WAIT: {error}")
