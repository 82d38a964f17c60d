"""One connection that carries frames: a WebSocket, or lines over bare TCP.

A transport tells its owner what happens and decides nothing. To the owner it promises:

1.  ``opened`` at most once, before any frame; ``closed`` at most once, after all frames, and never after the
    owner has called ``close``; ``gone`` exactly once, last: the socket is closed.
2.  *Bounded.* A frame above ``frame_max_bytes`` ends the connection. While the server does not read, nothing
    is written but what the owner writes, and the owner is told by ``is_writable`` and ``drained``.
3.  *An end.* ``close`` takes at most ``CLOSE_SECONDS``, whatever the server does.

WebSocket is RFC 6455, by the sans-IO core of ``websockets``; no extension is offered. Over bare TCP each line
is one JSON object; the server says why it closes in a last push.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol as Interface
from typing import cast

from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI
from zope.interface import implementer

from spread.client.connection import CLOSE_SECONDS, Clock, Timer, Transport, cancel

__all__ = ["FrameTransport", "LineTransport", "Owner", "WebSocketTransport"]


class Owner(Interface):
    """Who is told."""

    def opened(self, transport: FrameTransport) -> None: ...

    def received(self, transport: FrameTransport, frame: bytes) -> None: ...

    def drained(self, transport: FrameTransport) -> None:
        """It can be written again."""
        ...

    def closed(self, transport: FrameTransport, code: int, reason: str) -> None:
        """The connection has ended, or could not be made; ``code`` is 0 if there was no code."""
        ...

    def gone(self, transport: FrameTransport) -> None:
        """The socket is closed."""
        ...


@implementer(IPushProducer)
class FrameTransport(Protocol):
    """What both have in common."""

    def __init__(self, owner: Owner, clock: Clock, frame_max_bytes: int) -> None:
        self.is_writable = False
        """The server reads what is written; false too before ``opened``."""
        self._owner = owner
        self._clock = clock
        self._frame_max_bytes = frame_max_bytes
        self._is_over = False
        """Nothing more is told but ``gone``."""
        self._is_closing = False
        self._is_gone = False
        self._abort: Timer | None = None

    @property
    def is_made(self) -> bool:
        """There is, or was, a socket."""
        return self.transport is not None

    @property
    def _wire(self) -> Transport:
        return cast(Transport, self.transport)

    def connectionMade(self) -> None:
        self._wire.setTcpNoDelay(True)
        self._wire.setTcpKeepAlive(True)
        self._wire.registerProducer(self, True)

    def write(self, frame: bytes) -> None:
        """Send one frame. Not before ``opened``, and not after the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Say goodbye and close; what was written goes out before."""
        self._is_over = True
        self.is_writable = False
        if not self._is_gone:
            self._abort_soon()
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        self._stop_writing()

    def _stop_writing(self) -> None:
        """What was written still goes out."""
        if not self._is_closing:
            self._is_closing = True
            self._wire.unregisterProducer()
            self._wire.loseConnection()

    def _opened(self) -> None:
        self.is_writable = True
        self._owner.opened(self)

    def _ended(self, code: int, reason: str) -> None:
        if not self._is_over:
            self._is_over = True
            self.is_writable = False
            self._owner.closed(self, code, reason)

    def _abort_soon(self) -> None:
        if self._abort is None:
            self._abort = self._clock.callLater(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        """Close the socket at once."""
        self._wire.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._is_gone = True
        self._ended(0, "connection lost")
        if self._abort is not None:
            cancel(self._abort)
        self._owner.gone(self)

    def pauseProducing(self) -> None:
        self.is_writable = False

    def resumeProducing(self) -> None:
        if not self._is_over:
            self.is_writable = True
            self._owner.drained(self)

    def stopProducing(self) -> None:
        self.is_writable = False


class WebSocketTransport(FrameTransport):
    """Frames are messages of a WebSocket."""

    def __init__(
        self,
        owner: Owner,
        clock: Clock,
        frame_max_bytes: int,
        uri: WebSocketURI,
        subprotocol: str | None,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(owner, clock, frame_max_bytes)
        subprotocols = None if subprotocol is None else [Subprotocol(subprotocol)]
        self._protocol = ClientProtocol(uri, subprotocols=subprotocols, max_size=frame_max_bytes)
        self._subprotocol = subprotocol
        self._headers = headers
        self._message: bytearray | None = None
        """The fragments of a message that is not whole yet."""
        self._is_open = False

    def connectionMade(self) -> None:
        super().connectionMade()
        request = self._protocol.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        self._send()

    def resumeProducing(self) -> None:
        if self._is_open:
            super().resumeProducing()

    def write(self, frame: bytes) -> None:
        if self._protocol.state is not OPEN:
            return  # the server's Close came with what the owner is being told just now
        if self._subprotocol is None:
            self._protocol.send_text(frame)
        else:
            self._protocol.send_binary(frame)
        self._send()

    def _say_goodbye(self) -> None:
        if self._protocol.state is OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._send()
        else:
            super()._say_goodbye()

    def dataReceived(self, data: bytes) -> None:
        protocol = self._protocol
        was_writable = self.is_writable
        protocol.receive_data(data)
        for event in protocol.events_received():
            if self._is_over:
                break
            if isinstance(event, Response):
                self._answered(event)
            elif isinstance(event, Frame):
                self._framed(event)
        if self._is_open and not was_writable and protocol.state is OPEN:
            protocol.data_to_send()  # pongs to a server that does not read would pile up here
        else:
            self._send()
        if protocol.handshake_exc is not None:
            self._ended(0, str(protocol.handshake_exc))
            self.close()
        elif protocol.close_expected():
            close = protocol.close_rcvd or protocol.close_sent
            self._ended(0 if close is None else close.code, "" if close is None else close.reason)
            self._abort_soon()

    def _answered(self, response: Response) -> None:
        error = self._protocol.handshake_exc
        if error is not None:
            detail = f"HTTP {response.status_code} {response.reason_phrase}"
            self._ended(0, detail if isinstance(error, InvalidStatus) else str(error))
        elif self._protocol.subprotocol != self._subprotocol:
            self._ended(0, f"the server does not speak {self._subprotocol}")
            self.close()
        else:
            self._is_open = True
            self._opened()

    def _framed(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.fin and self._message is None:
            self._owner.received(self, bytes(frame.data))
            return
        if self._message is None:
            self._message = bytearray()
        self._message += frame.data
        if frame.fin:
            message, self._message = self._message, None
            self._owner.received(self, bytes(message))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._message = None

    def _send(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._wire.write(data)
            else:
                self._stop_writing()


class LineTransport(FrameTransport):
    """Frames are lines, or several of them."""

    def __init__(self, owner: Owner, clock: Clock, frame_max_bytes: int) -> None:
        super().__init__(owner, clock, frame_max_bytes)
        self._partial = bytearray()

    def connectionMade(self) -> None:
        super().connectionMade()
        self._opened()

    def write(self, frame: bytes) -> None:
        self._wire.write(frame + b"\n")

    def dataReceived(self, data: bytes) -> None:
        if self._is_over:
            return
        lines, newline, rest = data.rpartition(b"\n")
        if newline:
            frame = bytes(self._partial) + lines
            self._partial = bytearray(rest)
            if not self._is_too_long(len(frame)):
                self._owner.received(self, frame)
        else:
            self._partial += rest
        self._is_too_long(len(self._partial))

    def _is_too_long(self, length: int) -> bool:
        if length > self._frame_max_bytes:
            self._partial.clear()
            self._ended(CloseCode.MESSAGE_TOO_BIG, "a line is too long")
            self.close()
            return True
        return False
