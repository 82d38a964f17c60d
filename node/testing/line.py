"""A session and its connection in memory: an edge of ``session.contract`` without a socket."""

from __future__ import annotations

from twisted.internet.task import Clock

from spread.node.clients import Clients
from spread.node.codes import CONNECTION_CLOSED, SLOW, Disconnect
from spread.node.edge.codecs import JSON_LINES
from spread.node.outbox import Outbox
from spread.node.session.contract import Visit
from spread.node.testing.pipe import Pipe

__all__ = ["ADDRESS", "Line"]

ADDRESS = "192.0.2.1"
"""Where clients come from."""


class Line:
    """:raises ConnectionRefusedError: the shard takes no more clients."""

    def __init__(self, clock: Clock, clients: Clients, visit: Visit) -> None:
        refused = clients.admit(visit.address)
        if refused:
            raise ConnectionRefusedError(refused)
        self.closed: Disconnect | None = None
        self.pipe = Pipe(lambda call: clock.callLater(0, call), self._lost)
        self._clock = clock
        self._held: list[bytes] = []
        self._is_reading = True
        self._outbox = Outbox(self.pipe, clients.cork, clients.outbox_max_bytes, self._overflowed)
        self._session = clients.open(self, self._outbox, JSON_LINES, visit)

    def say(self, frame: bytes) -> None:
        """Hand a frame to the session, when it reads."""
        self._held.append(frame)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._held and self._is_reading and self.closed is None and self.pipe.is_open:
            self._session.received(self._held.pop(0))

    def _overflowed(self) -> None:
        self._session.end(SLOW)

    def _lost(self) -> None:
        if self.closed is None:
            self.closed = CONNECTION_CLOSED
        self._outbox.abandon()
        self._session.lost()

    # -- what the session asks ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See ``Edge``."""
        self._is_reading = False

    def resume_reading(self) -> None:
        """See ``Edge``. Not at once, since the session is amid something."""
        self._is_reading = True
        self._clock.callLater(0, self._hand_over)

    def close(self, disconnect: Disconnect) -> None:
        """See ``Edge``."""
        if self.closed is None:
            self.closed = disconnect
            self._outbox.close(self.pipe.abortConnection)

    def cut(self) -> None:
        """See ``Edge``."""
        self.pipe.abortConnection()
