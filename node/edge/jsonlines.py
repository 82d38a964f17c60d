"""The Centrifuge protocol over bare TCP: one JSON object a line, for programs without an SDK, and for ``nc``.

    $ nc localhost 8008
    {"id":1,"connect":{}}
    {"id":1,"connect":{"client":"…","version":"…","ping":25,"pong":true}}

A line ends with LF, or CR LF. Each is handed over as one frame, an empty one too; what is behind the last LF
is one when the peer ends its side. A line over the limit ends the connection. Nothing is ever sent but lines;
the last one says why the connection is ended by the server:

    {"push":{"disconnect":{"code":3501,"reason":"bad request"}}}
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IAddress, IProtocol
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from spread.hub.reactor import Clock, Timer
from spread.node import codes
from spread.node.codes import Disconnect
from spread.node.edge.codecs import JSON_LINES
from spread.node.edge.ending import end_writing
from spread.node.outbox import Outbox, make_outbox
from spread.node.session.contract import EdgeSession, Sessions, Visit
from spread.node.wire import json, messages
from spread.node.wire.framing import line

__all__ = ["FINISH_SECONDS", "LINGER_SECONDS", "JsonLinesEdge", "JsonLinesFactory"]

FINISH_SECONDS = 5.0
"""How long a client may take to receive what was waiting for it before its connection is cut."""

LINGER_SECONDS = 2.0
"""How long a client that was sent its last line may take to end the connection before it is cut."""


@implementer(IProtocol)
class JsonLinesEdge:
    """One connection; an ``Edge`` for its session."""

    __slots__ = (
        "_factory",
        "_is_closing",
        "_is_handing",
        "_is_reading",
        "_outbox",
        "_partial",
        "_session",
        "_timer",
        "_transport",
        "_waiting",
    )

    def __init__(self, factory: JsonLinesFactory) -> None:
        self._factory = factory
        self._transport: Any = None
        self._outbox: Outbox
        self._session: EdgeSession | None = None
        # What came of a line that is not complete.
        self._partial: bytearray | None = None
        # Lines that came while reading was paused.
        self._waiting: list[bytes] | None = None
        self._is_reading = True
        # The session is being given lines; what it asks for meanwhile is done after that.
        self._is_handing = False
        self._is_closing = False
        # While closing: cuts the connection.
        self._timer: Timer | None = None

    # -- Twisted calls -----------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """Somebody connected."""
        self._transport = transport
        if not hasattr(self._factory, "clock"):
            self._factory.clock = transport.reactor
        sessions = self._factory.sessions
        address = getattr(transport.getPeer(), "host", None) or ""
        refused = sessions.admit(address)
        if refused:
            self._is_closing = True
            transport.write(_last_line(codes.TOO_MANY_COMMANDS.because(refused)))
            transport.loseConnection()
            return
        self._outbox = make_outbox(transport, sessions.cork, sessions.outbox_max_bytes, self._overflowed)
        visit = Visit(transport="json", address=address)
        self._session = sessions.open(self, self._outbox, JSON_LINES, visit)

    def connectionMade(self) -> None:
        """Part of the interface; ``makeConnection`` does it all."""

    def dataReceived(self, data: bytes) -> None:
        """Some bytes of lines."""
        if self._is_closing:
            return
        limit = self._factory.line_max_bytes
        partial, self._partial = self._partial, None
        if partial is not None:
            partial += data
            if b"\n" not in data and len(partial) <= limit:
                self._partial = partial
                return
            data = bytes(partial)
        *lines, rest = data.split(b"\n")
        is_overlong = len(rest) > limit
        for index, each in enumerate(lines):
            if each.endswith(b"\r"):
                lines[index] = each = each[:-1]
            if len(each) > limit:
                is_overlong = True
                del lines[index:]
                break
        if rest and not is_overlong:
            self._partial = bytearray(rest)
        self._hand_over(lines)
        if is_overlong and not self._is_closing and self._session is not None:
            self._session.end(codes.BAD_PROTOCOL.because("line too long"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        partial, self._partial = self._partial, None
        if partial and self._is_reading:
            self._hand_over([bytes(partial)])
        self._is_closing = True
        self._stop_timer()
        self._waiting = None
        session, self._session = self._session, None
        if session is not None:
            self._outbox.abandon()
            session.lost()

    # -- the session asks --------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See ``contract.Edge``."""
        if self._is_reading and not self._is_closing:
            self._is_reading = False
            self._transport.pauseProducing()

    def resume_reading(self) -> None:
        """See ``contract.Edge``."""
        if self._is_reading:
            return
        self._is_reading = True
        if self._waiting and not self._is_handing:
            waiting, self._waiting = self._waiting, None
            self._hand_over(waiting)
        if self._is_reading:
            self._transport.resumeProducing()

    def close(self, disconnect: Disconnect) -> None:
        """See ``contract.Edge``."""
        if self._is_closing:
            return
        self._is_closing = True
        self._partial = self._waiting = None
        seconds = max(self._factory.write_seconds, FINISH_SECONDS)
        self._timer = self._factory.clock.callLater(seconds, self.cut)
        self._outbox.close(self._said, _last_line(disconnect))

    def cut(self) -> None:
        """See ``contract.Edge``."""
        self._is_closing = True
        self._stop_timer()
        self._outbox.abandon()
        self._transport.abortConnection()

    # -- inside ------------------------------------------------------------------------------------------

    def _hand_over(self, lines: list[bytes]) -> None:
        """Give the session the lines, as far as it reads; the rest waits."""
        if self._waiting:
            self._waiting += lines
            return
        session = self._session
        if session is None:
            return
        self._is_handing = True
        for index, each in enumerate(lines):
            if not self._is_reading:
                self._waiting = lines[index:]
                break
            session.received(each)
            if self._is_closing:
                break
        self._is_handing = False

    def _said(self) -> None:
        """The last line is on its way: what still comes is taken in, so that no reset overtakes it."""
        self._stop_timer()
        self._timer = self._factory.clock.callLater(LINGER_SECONDS, self.cut)
        end_writing(self._transport)
        if not self._is_reading:
            self._is_reading = True
            self._transport.resumeProducing()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _overflowed(self) -> None:
        if self._session is None or self._is_closing:
            self.cut()
        else:
            self._session.end(codes.SLOW)


class JsonLinesFactory(ServerFactory):
    """All such connections of a shard.

    :param settings: ``spread.node.settings.Settings``.
    :param clock: of timers; by default the reactor of the first connection.
    """

    noisy = False
    clock: Clock

    def __init__(self, sessions: Sessions, settings: Any, clock: Clock | None = None) -> None:
        self.sessions = sessions
        if clock is not None:
            self.clock = clock
        self.line_max_bytes: int = settings.websocket.message_size_limit
        self.write_seconds: float = settings.websocket.write_timeout

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return JsonLinesEdge(self)


def _last_line(disconnect: Disconnect) -> bytes:
    push = messages.Push("", messages.Disconnect(disconnect.code, disconnect.reason))
    return line(json.encode_reply(messages.Reply(0, push)))
