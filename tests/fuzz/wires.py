"""A TCP connection in memory that does what the reactor's does, the awkward habits included, and its peer."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Wire"]

_PEER = IPv4Address("TCP", "192.0.2.9", 54321)
_HOST = IPv4Address("TCP", "192.0.2.1", 8000)


@implementer(ITCPTransport, IPushProducer)
class Wire:
    """A transport, its socket, and what its peer has got.

    A connection that is to be lost is lost a turn later, as in the reactor, when nothing waits and no
    producer has more. What is asked of it after that is passed over.

    :param hears_after_end: as over TLS: what arrives after ``loseConnection`` is still handed over.
    :param room: bytes that the peer's kernel takes until ``drain``; ``None``: all.
    """

    def __init__(self, clock: Clock, room: int | None = None, hears_after_end: bool = False) -> None:
        self.reactor = clock
        self.protocol: Any = None
        self.connected = True
        self.disconnecting = False
        self.is_aborted = False
        self.hears_after_end = hears_after_end
        self.is_paused = False
        self.has_ended_writing = False
        self.heard = bytearray()
        """What the peer has got since it was last read."""
        self._room = room
        self._buffer = bytearray()
        self._producer: Any = None
        self._is_streaming = False

    # -- the peer ----------------------------------------------------------------------------------------

    def connect(self, protocol: Any) -> None:
        """The peer has connected."""
        self.protocol = protocol
        protocol.makeConnection(self)

    @property
    def can_say(self) -> bool:
        """The server would read what the peer says now."""
        is_over = self.disconnecting and (self.is_aborted or not self.hears_after_end)
        return self.connected and not is_over and not self.is_paused

    def say(self, data: bytes) -> None:
        """The peer sends something, which is read at once."""
        assert self.can_say
        self.protocol.dataReceived(data)

    def take(self) -> bytes:
        """What the peer has got."""
        heard = bytes(self.heard)
        self.heard.clear()
        return heard

    def drain(self) -> None:
        """The peer reads all, from now on."""
        self._room = None
        waiting, self._buffer = self._buffer, bytearray()
        self.heard += waiting
        if self._producer is not None and not self._is_streaming:
            self._producer.resumeProducing()
        self._lose_if_done()

    def lose(self) -> None:
        """It is over."""
        if not self.connected:
            return
        self.connected = False
        self.disconnecting = True
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(ConnectionDone()))

    # -- the socket --------------------------------------------------------------------------------------

    def getHandle(self) -> Wire:
        return self

    def send(self, data: bytes | memoryview) -> int:
        if not self.connected or self.has_ended_writing:
            raise BrokenPipeError
        assert not self._buffer, "overtakes what waits in the transport"
        taken = self._take(data)
        if data and not taken:
            raise BlockingIOError
        return taken

    def _take(self, data: bytes | memoryview) -> int:
        taken = len(data) if self._room is None else min(self._room, len(data))
        if self._room is not None:
            self._room -= taken
        self.heard += data[:taken]
        return taken

    # -- the transport -----------------------------------------------------------------------------------

    @property
    def dataBuffer(self) -> bytes:
        return bytes(self._buffer)

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if not self.connected or self.has_ended_writing:
            return
        if self._buffer:
            self._buffer += data
        else:
            self._buffer += data[self._take(data) :]

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("there is a producer already")
        if not self.connected:
            producer.stopProducing()
            return
        self._producer, self._is_streaming = producer, streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self._producer = None
        if self.disconnecting:
            self._lose_if_done()

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._lose_if_done()

    def _lose_if_done(self) -> None:
        if self.disconnecting and not self._buffer and self._producer is None:
            self.reactor.callLater(0, self.lose)

    def loseWriteConnection(self) -> None:
        self.has_ended_writing = True

    def abortConnection(self) -> None:
        if self.connected:
            self.disconnecting = self.is_aborted = True
            self._buffer.clear()
            self.reactor.callLater(0, self.lose)

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.is_paused = False

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IPv4Address:
        return _PEER

    def getHost(self) -> IPv4Address:
        return _HOST

    def setTcpNoDelay(self, enabled: bool) -> None: ...
    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...
    def getTcpKeepAlive(self) -> bool:
        return False
