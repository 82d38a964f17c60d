"""A connection in memory, as an outbox sees it: its socket, and Twisted's buffer behind ``write``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Pipe"]


class Pipe:
    """:param lost: called once, a turn after the connection has ended.
    :param later: calls something in the next turn.
    """

    def __init__(self, later: Callable[[Callable[[], None]], Any], lost: Callable[[], None]) -> None:
        self.is_open = True
        self._later = later
        self._lost = lost
        self._arrived = bytearray()
        self._buffer = bytearray()
        self._is_read = True
        self._producer: Any = None

    # -- the peer -------------------------------------------------------------------------------------------

    def take(self) -> bytes:
        """What has arrived since this was last asked."""
        arrived = bytes(self._arrived)
        self._arrived.clear()
        return arrived

    def stop_reading(self) -> None:
        """The peer takes nothing more, as one whose line is too slow."""
        self._is_read = False

    def read_on(self) -> None:
        """It takes all that waits, and what is to come."""
        self._is_read = True
        self._arrived += self._buffer
        self._buffer.clear()
        if self._producer is not None:
            self._producer.resumeProducing()

    # -- a transport, as far as an outbox needs one; its socket ---------------------------------------------

    def getHandle(self) -> Pipe:
        """The socket."""
        return self

    def send(self, data: bytes | memoryview) -> int:
        """See ``socket.send``."""
        if not self.is_open:
            raise BrokenPipeError
        if not self._is_read:
            raise BlockingIOError
        self._arrived += data
        return len(data)

    def write(self, data: bytes) -> None:
        """See ``ITransport``."""
        if self.is_open:
            (self._arrived if self._is_read and not self._buffer else self._buffer).extend(data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """See ``IConsumer``. Twisted asks a producer for more at once, too."""
        self._producer = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """See ``IConsumer``."""
        self._producer = None

    def abortConnection(self) -> None:
        """See ``ITCPTransport``."""
        if self.is_open:
            self.is_open = False
            self._later(self._end)

    def _end(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()
        self._lost()
