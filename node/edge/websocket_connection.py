"""A WebSocket client's connection, from the handshake on (RFC 6455).

    OPEN     messages come and go
    CLOSING  nothing is handed over any more; what waits is being sent, and a Close behind it
    SAID     our Close is on its way: the peer's is waited for, unless it was first
    GONE

A Close of the peer leads from OPEN to CLOSING, as ``close`` does. The way to GONE takes some seconds at most.

What comes in is parsed by ``websockets`` (``parsers``), but for whole messages in one frame of up to 64 KiB,
which is what clients send nearly always (``frames``); what goes out was framed once for all clients and goes
straight into the outbox. A message is handed over as bytes, whether it came as text or binary and in
however many fragments; text that is not UTF-8 ends the connection (1007), as does a message over the limit
(1009) and everything that the protocol forbids (1002). Pings are answered here.

While reading is paused, what was parsed already waits: one read of the transport at most.

Measured (2 cores, Python 3.11): a handshake takes 70 µs from the bytes of its request to those of the answer,
35 of them in ``twisted.web``; a message of 40 bytes 3.7 µs until the session has it, 2.2 in a read of 16. An
idle connection takes 1.4 kB of Python objects, its session not included: 0.3 kB are the outbox, 0.2 kB are
here, the rest is the transport of the reactor and its socket.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from random import uniform
from typing import Any

from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from zope.interface import implementer

from spread.hub.reactor import Clock, Timer
from spread.node import codes
from spread.node.codec import Codec
from spread.node.codes import Disconnect
from spread.node.edge.ending import end_writing
from spread.node.edge.frames import is_utf8, whole_messages
from spread.node.edge.parsers import Parsers
from spread.node.outbox import Outbox, make_outbox
from spread.node.session.contract import EdgeSession, Sessions, Visit
from spread.node.wire.framing import websocket_close, websocket_ping

__all__ = ["CLOSE_SECONDS", "LINGER_SECONDS", "Opening", "WebSocketEdge", "WebSocketPort"]

CLOSE_SECONDS = 5.0
"""How long what waits for a client may take to be sent, and then how long its Close may take to come."""

LINGER_SECONDS = 2.0
"""How long a client whose frames cannot be read any more may take to see that."""

_INVALID_TEXT = Disconnect(CloseCode.INVALID_DATA, "text is not UTF-8")


class _Phase(IntEnum):
    OPEN = 0
    CLOSING = 1
    SAID = 2
    GONE = 3


class WebSocketPort:
    """What the connections of one shard have in common.

    :param write_seconds: how long a Close may take to be sent, if that is more than ``CLOSE_SECONDS``. A
        client that was too slow because its machine slept for a moment reads its Close when it wakes up.
    :param ping_seconds: time between two pings, for connections that asked for those of WebSocket;
        ``pong_seconds``: time in which they must be answered. None if not above 0.
    """

    def __init__(
        self, sessions: Sessions, clock: Clock, write_seconds: float, ping_seconds: float, pong_seconds: float
    ) -> None:
        self.sessions = sessions
        self.clock = clock
        self.write_seconds = write_seconds
        self.ping_seconds = ping_seconds
        self.pong_seconds = pong_seconds


class Opening:
    """How a connection begins. Forgotten when it has begun.

    :param head: the answer to the handshake.
    """

    __slots__ = ("codec", "head", "visit")

    def __init__(self, head: bytes, codec: Codec, visit: Visit) -> None:
        self.head = head
        self.codec = codec
        self.visit = visit


@implementer(IProtocol)
class WebSocketEdge:
    """One connection; an ``Edge`` for its session. Made for ``take_over``."""

    __slots__ = (
        "_is_handing",
        "_is_reading",
        "_is_text",
        "_message",
        "_opening",
        "_outbox",
        "_parser",
        "_parsers",
        "_phase",
        "_pings",
        "_port",
        "_session",
        "_timer",
        "_transport",
        "_waiting",
    )

    def __init__(self, port: WebSocketPort, parsers: Parsers, opening: Opening) -> None:
        self._port = port
        self._parsers = parsers
        self._opening: Opening | None = opening
        self._phase = _Phase.OPEN
        self._transport: Any = None
        self._outbox: Outbox
        self._session: EdgeSession | None = None
        # Within a message or a frame, or after the end of all frames.
        self._parser: ServerProtocol | None = None
        # The fragments of a message that is not complete.
        self._message: bytearray | None = None
        self._is_text = False
        # Messages that came while reading was paused.
        self._waiting: list[bytes] | None = None
        self._is_reading = True
        # The session is being given messages; what it asks for meanwhile is done after that.
        self._is_handing = False
        self._pings: _Pings | None = None
        # While CLOSING: cuts the connection.
        self._timer: Timer | None = None

    # -- Twisted calls -----------------------------------------------------------------------------------

    def makeConnection(self, transport: Any) -> None:
        """The handshake is over but for our answer."""
        opening, self._opening = self._opening, None
        assert opening is not None
        self._transport = transport
        port = self._port
        sessions = port.sessions
        self._outbox = make_outbox(transport, sessions.cork, sessions.outbox_max_bytes, self._overflowed)
        self._outbox.write(opening.head)
        self._session = sessions.open(self, self._outbox, opening.codec, opening.visit)
        if opening.visit.has_native_pings and port.ping_seconds > 0 and self._phase is _Phase.OPEN:
            self._pings = _Pings(port, self._outbox, self._no_pong)

    def connectionMade(self) -> None:
        """Part of the interface; ``makeConnection`` does it all."""

    def dataReceived(self, data: bytes) -> None:
        """Some bytes of frames."""
        if self._parser is None and self._phase is _Phase.OPEN:
            messages, at = whole_messages(data, self._parsers.max_bytes)
            if messages:
                self._hand_over(messages)
            if at == len(data):
                return
            if at:
                data = data[at:]
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """What is not all small whole messages."""
        parser = self._parser or self._parsers.borrow()
        parser.receive_data(data)
        frames: Any = parser.events_received()
        answers = parser.data_to_send()
        self._parser = parser
        if parser.state is not OPEN:
            # A Close is the last thing that a parser sends, with a sign that nothing follows; also after
            # a fault. Behind that it says and finds nothing any more.
            self._ended(parser, frames, answers)
            return
        for pong in answers:
            self._outbox.write(pong)
        if self._phase is _Phase.OPEN:
            messages = self._messages(frames)
            if self._message is None:
                self._parser = self._parsers.give_back(parser)
            self._hand_over(messages)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self._phase = _Phase.GONE
        self._stop_timers()
        self._outbox.abandon()
        self._parser = self._message = None
        self._waiting = None
        session, self._session = self._session, None
        if session is not None:
            session.lost()

    # -- the session asks --------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See ``contract.Edge``."""
        if self._is_reading and self._phase is _Phase.OPEN:
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
        if self._phase is not _Phase.OPEN:
            return
        port = self._port
        seconds = max(port.write_seconds, CLOSE_SECONDS)
        self._begin_closing(seconds)
        self._outbox.close(self._said, websocket_close(disconnect.code, disconnect.reason))

    def cut(self) -> None:
        """See ``contract.Edge``."""
        self._phase = _Phase.GONE
        self._stop_timers()
        self._outbox.abandon()
        self._transport.abortConnection()

    # -- frames ------------------------------------------------------------------------------------------

    def _messages(self, frames: list[Frame]) -> list[bytes]:
        """The messages that are complete now, up to one that is at fault."""
        messages: list[bytes] = []
        for frame in frames:
            opcode = frame.opcode
            data: Any = frame.data
            if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
                self._is_text = opcode is Opcode.TEXT
                if not frame.fin:
                    self._message = bytearray(data)
                    continue
            elif opcode is Opcode.CONT:
                message = self._message
                assert message is not None
                message += data
                if not frame.fin:
                    continue
                data, self._message = bytes(message), None
            else:
                if opcode is Opcode.PONG and self._pings is not None:
                    self._pings.answered()
                continue
            if self._is_text and not is_utf8(data):
                self._hand_over(messages)
                self._fail(_INVALID_TEXT)
                return []
            messages.append(data)
        return messages

    def _hand_over(self, messages: list[bytes]) -> None:
        """Give the session the messages, as far as it reads; the rest waits."""
        if self._waiting:
            self._waiting += messages
            return
        session = self._session
        assert session is not None
        self._is_handing = True
        for index, message in enumerate(messages):
            if not self._is_reading:
                self._waiting = messages[index:]
                break
            session.received(message)
            if self._phase is not _Phase.OPEN:
                break
        self._is_handing = False

    def _ended(self, parser: ServerProtocol, frames: list[Frame], answers: list[bytes]) -> None:
        """There are no more frames: a Close came, or something that is none."""
        if self._phase is _Phase.SAID and parser.close_rcvd is not None:
            self._transport.loseConnection()
        if self._phase is not _Phase.OPEN:
            return
        for pong in answers[:-2]:
            self._outbox.write(pong)
        self._hand_over(self._messages(frames))
        sent = parser.close_sent
        if self._phase is not _Phase.OPEN or sent is None:
            return
        if parser.parser_exc is not None:
            self._fail(Disconnect(sent.code, sent.reason))
            return
        self._begin_closing(CLOSE_SECONDS)
        self._outbox.close(self._said, answers[-2])

    def _fail(self, disconnect: Disconnect) -> None:
        if self._phase is _Phase.OPEN and self._session is not None:
            self._session.end(disconnect)

    # -- the end -----------------------------------------------------------------------------------------

    def _begin_closing(self, seconds: float) -> None:
        """From now on nothing is handed over; it is all over in ``seconds``, unless ``_said`` comes first."""
        self._phase = _Phase.CLOSING
        self._stop_timers()
        self._waiting = None
        self._message = None
        self._timer = self._port.clock.callLater(seconds, self.cut)
        if not self._is_reading:  # the peer's Close must be seen
            self._is_reading = True
            self._transport.resumeProducing()

    def _said(self) -> None:
        """Our Close is on its way."""
        self._phase = _Phase.SAID
        self._stop_timers()
        seconds = CLOSE_SECONDS
        parser = self._parser
        if parser is not None and parser.close_rcvd is not None:
            self._transport.loseConnection()
        elif parser is not None and parser.state is not OPEN:
            # The peer's Close cannot be found in what comes: we wait for the end of the connection.
            seconds = LINGER_SECONDS
            end_writing(self._transport)
        self._timer = self._port.clock.callLater(seconds, self.cut)

    def _stop_timers(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        pings, self._pings = self._pings, None
        if pings is not None:
            pings.stop()

    def _overflowed(self) -> None:
        if self._session is None:
            self.cut()
        else:
            self._fail(codes.SLOW)

    def _no_pong(self) -> None:
        self._fail(codes.NO_PONG)


class _Pings:
    """Pings of WebSocket, for who asked for them instead of those of the protocol above it."""

    __slots__ = ("_is_answered", "_late", "_outbox", "_port", "_timer")

    def __init__(self, port: WebSocketPort, outbox: Outbox, late: Callable[[], None]) -> None:
        self._port = port
        self._outbox = outbox
        self._late = late
        self._is_answered = True
        # Clients that connect together need not be pinged together.
        self._timer = port.clock.callLater(port.ping_seconds * uniform(0.5, 1), self._ping)

    def answered(self) -> None:
        """A pong came."""
        self._is_answered = True

    def stop(self) -> None:
        """No more pings."""
        if self._timer.active():
            self._timer.cancel()

    def _ping(self) -> None:
        self._outbox.write(websocket_ping())
        port = self._port
        if 0 < port.pong_seconds < port.ping_seconds:
            self._is_answered = False
            self._timer = port.clock.callLater(port.pong_seconds, self._look)
        else:
            self._timer = port.clock.callLater(port.ping_seconds, self._ping)

    def _look(self) -> None:
        if self._is_answered:
            port = self._port
            self._timer = port.clock.callLater(port.ping_seconds - port.pong_seconds, self._ping)
        else:
            self._late()
