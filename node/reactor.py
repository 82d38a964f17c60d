"""The reactor of a shard: Twisted's own on epoll, without a log context around each event.

``log.callWithLogger`` wraps whatever the reactor calls in a context that names the connection for
``twisted.python.log``. It takes 2.3 µs an event, as much as a ``send``, and nothing of ours reads it:
messages of ``twisted.logger`` carry their own namespace. What a connection raises is caught and logged
within ``_doReadOrWrite``, as before.

Where there is no epoll, Twisted's default is used.
"""

from __future__ import annotations

import errno
import sys
from typing import Any

__all__ = ["install"]


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
            try:
                events = this._poller.poll(-1 if timeout is None else timeout, len(this._selectables))
            except OSError as error:
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
