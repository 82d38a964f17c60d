"""The reactor of a shard: Twisted's own on epoll, without a log context around each event.

``log.callWithLogger`` wraps whatever the reactor calls in a context that names the connection for
``twisted.python.log``. It takes 1.2 µs an event, and nothing of ours reads it:
messages of ``twisted.logger`` carry their own namespace. What a connection raises is caught and logged
within ``_doReadOrWrite``, as before.

Where there is no epoll, Twisted's default is used.

It also measures its turns: a turn that takes long delays all clients of the shard. ``turns`` has what it saw.
"""

from __future__ import annotations

import errno
import sys
from time import perf_counter
from typing import Any

__all__ = ["LONG_SECONDS", "Turns", "install", "turns"]

LONG_SECONDS = 0.05
"""A turn that takes longer is counted as long."""


class Turns:
    """How long the turns of the reactor took, the time apart for which it waited for something to happen."""

    __slots__ = ("began_at", "long", "longest_seconds")

    def __init__(self) -> None:
        self.began_at = perf_counter()
        self.long = 0
        self.longest_seconds = 0.0

    def over(self) -> None:
        """A turn is over, and the reactor waits. 0.15 µs for each turn, the clock included."""
        seconds = perf_counter() - self.began_at
        if seconds > self.longest_seconds:
            self.longest_seconds = seconds
        if seconds > LONG_SECONDS:
            self.long += 1


turns = Turns()
"""Of the global reactor."""


def install() -> None:
    """Make it the global reactor, unless there is one already."""
    if "twisted.internet.reactor" in sys.modules or not sys.platform.startswith("linux"):
        return
    from twisted.internet.epollreactor import EPollReactor
    from twisted.internet.main import installReactor

    class ShardReactor(EPollReactor):
        """See the module."""

        def doPoll(self, timeout: float | None) -> None:
            """Wait for events, and have them handled."""
            this: Any = self
            turns.over()
            try:
                events = this._poller.poll(-1 if timeout is None else timeout, len(this._selectables))
                turns.began_at = perf_counter()
            except OSError as error:
                turns.began_at = perf_counter()
                if error.errno == errno.EINTR:
                    return
                raise
            selectables = this._selectables
            for fd, event in events:
                # One that was handled before it may have closed this one.
                if (selectable := selectables.get(fd)) is not None:
                    this._doReadOrWrite(selectable, fd, event)

        doIteration = doPoll

    reactor: Any = ShardReactor
    installReactor(reactor())
