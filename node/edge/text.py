"""The text protocol's connections: bytes in, frames out.

Keeps the time for messages without a line ending, and ends connections so that the last words arrive.
All decisions are the session's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.reactor import Timer
from spread.node import codes
from spread.node.cork import Cork
from spread.node.edge.ending import end_writing
from spread.node.limits import Admission
from spread.node.outbox import make_outbox
from spread.node.session.text import Session, Surroundings
from spread.node.wire.text import Framer, error_line

__all__ = ["TextEdge", "TextFactory"]

LINGER_SECONDS = 2.0
"""How long a refused client may go on sending before its connection is cut."""

LINGER_MAX_BYTES = 4 << 20
"""How much it may still send in that time: what was under way on a long and fat line."""

MAX_LINGERING = 32
"""Refused clients that are looked after at a time; one more is closed at once, and may miss our words.
They are no clients, so the limits on clients do not bound the files that they keep open."""

FINISH_SECONDS = 5.0
"""How long a client may take to receive what was waiting for it before its connection is cut."""


class TextEdge(Protocol):
    """One connection."""

    def __init__(self, factory: TextFactory) -> None:
        self.factory: TextFactory = factory
        self._session: Session | None = None
        self._framer = Framer(factory.shared.text.message_max_bytes)
        self._idle: Timer | None = None
        self._ending: Timer | None = None
        self._linger_bytes = 0
        self._address = ""
        self._is_reading = True
        self._is_refused = False

    # -- Twisted calls -----------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._address = getattr(transport.getPeer(), "host", "")
        refused = self.factory.admit(self._address)
        if refused:
            transport.write(error_line(refused))
            if self.factory.lingering < MAX_LINGERING:
                self.factory.lingering += 1
                self._is_refused = True
                self._end_lingering()
            else:
                transport.loseConnection()
            return
        self._session = self.factory.open_session(self, transport)
        self._session.open()

    def dataReceived(self, data: bytes) -> None:
        session = self._session
        if session is None or self._ending is not None:
            # The last words are on their way; what still comes is taken in and forgotten.
            self._linger_bytes += len(data)
            if self._linger_bytes > LINGER_MAX_BYTES:
                self._cut()
            return
        framer = self._framer
        messages = framer.feed(data)
        if messages:
            session.received(messages)
        if framer.is_overlong:
            self._stop_idle()
            session.overlong()
        else:
            self._time_idle()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_idle()
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        self.factory.lingering -= self._is_refused
        session, self._session = self._session, None
        if session is not None:
            partial = self._framer.flush()
            if partial:
                session.received([partial])
            session.lost()
            self.factory.close_session(session, self._address)

    # -- the session asks --------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """See ``session.text.Edge``."""
        return self._address

    def pause_reading(self) -> None:
        """See ``session.Edge``."""
        self._is_reading = False
        self._stop_idle()  # the rest of a message may have come, and is not read
        cast(Any, self.transport).pauseProducing()

    def resume_reading(self) -> None:
        """See ``session.Edge``."""
        self._is_reading = True
        self._time_idle()
        cast(Any, self.transport).resumeProducing()

    def flush(self) -> None:
        """See ``session.Edge``."""
        self._stop_idle()
        message = self._framer.flush()
        if message and self._session is not None:
            self._session.received([message])

    def cut(self) -> None:
        """See ``session.Edge``."""
        cast(Any, self.transport).abortConnection()

    def finish(self, linger: bool) -> None:
        """See ``session.Edge``."""
        self._stop_idle()
        if self._session is None or self._ending is not None:
            return
        transport: Any = self.transport
        self._ending = self.factory.shared.clock.callLater(FINISH_SECONDS, self._cut)
        self._session.outbox.close(self._end_lingering if linger else transport.loseConnection)

    # -- inside ------------------------------------------------------------------------------------------

    def _end_lingering(self) -> None:
        """Everything is sent: say so, and take in what still comes until the peer has seen it."""
        if self._ending is not None:
            self._ending.cancel()
        self._ending = self.factory.shared.clock.callLater(LINGER_SECONDS, self._cut)
        end_writing(self.transport)
        if not self._is_reading:
            self.resume_reading()

    def _cut(self) -> None:
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self._ending = None
        if self._session is not None:
            self._session.outbox.abandon()
        cast(Any, self.transport).abortConnection()

    def _time_idle(self) -> None:
        """Begin to wait anew for the end of a message, if one has begun."""
        self._stop_idle()
        if self._framer.has_partial and self._is_reading and self._ending is None:
            seconds = self.factory.shared.text.idle_flush_seconds
            self._idle = self.factory.shared.clock.callLater(seconds, self._idle_over)

    def _idle_over(self) -> None:
        # A reactor that was held up runs its timers before it reads: what follows may be there by now.
        self._idle = self.factory.shared.clock.callLater(0, self._idle_flush)

    def _idle_flush(self) -> None:
        self._idle = None
        self.flush()

    def _stop_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


class TextFactory(Factory):
    """All text connections of a shard.

    :param admission: who may connect; shared with the shard's other edges.
    :param numbers: gives the numbers of sessions; shared likewise.
    """

    log = Logger("spread.node.edge.text")
    noisy = False

    def __init__(
        self,
        shared: Surroundings,
        admission: Admission,
        cork: Cork,
        numbers: Iterator[int],
        outbox_max_bytes: int,
    ) -> None:
        self.shared = shared
        self.sessions: dict[int, Session] = {}
        self.lingering = 0
        """Refused clients that have not gone yet."""
        self._admission = admission
        self._cork = cork
        self._outbox_max_bytes = outbox_max_bytes
        self._numbers = numbers

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return TextEdge(self)

    def admit(self, address: str) -> str:
        """Let a client in, or say why not."""
        counters = self.shared.counters
        counters.connects += 1
        refused = self._admission.enter(address)
        if refused == "full":
            counters.refused_full += 1
            return codes.SHARD_FULL.format(limit=self._admission.max_clients)
        if refused == "address":
            counters.refused_address += 1
            return codes.ADDRESS_FULL.format(limit=self._admission.max_per_address)
        counters.clients += 1
        return ""

    def open_session(self, edge: TextEdge, transport: Any) -> Session:
        """A session for a client that was let in."""

        def overflowed() -> None:
            # Dropped without a word: a peer that does not read would not read that either.
            self.shared.counters.slow_clients += 1
            transport.abortConnection()

        outbox = make_outbox(transport, self._cork, self._outbox_max_bytes, overflowed)
        session = Session(next(self._numbers), edge, outbox, self.shared)
        self.sessions[session.number] = session
        return session

    def close_session(self, session: Session, address: str) -> None:
        """The connection of a session is gone."""
        del self.sessions[session.number]
        self._admission.leave(address)
        self.shared.counters.clients -= 1

    # -- the shard stops ---------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """Take in nothing more from anybody."""
        for session in self.sessions.values():
            session.stop_reading()

    def say_goodbye(self, shard: int) -> None:
        """Tell everybody that the shard stops, and end the connections."""
        for session in list(self.sessions.values()):
            session.goodbye(shard)

    def cut_all(self) -> None:
        """Drop the connections that are left."""
        for session in list(self.sessions.values()):
            session.cut()
