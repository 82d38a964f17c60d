"""One TCP connection to a server, and how long to wait before the next.

The connection tells its owner what happens, and closes without losing what was written. It decides
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as Interface
from typing import cast

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["CLOSE_SECONDS", "Backoff", "ChatConnection", "Clock", "Owner", "Timer", "cancel"]

BACKOFF_FIRST_SECONDS = 0.1
BACKOFF_MOST_SECONDS = 10.0
CLOSE_SECONDS = 5.0
"""How long the server may take to close its side, once all is sent."""


class Timer(Interface):
    def active(self) -> bool: ...
    def cancel(self) -> None: ...


class Clock(Interface):
    """A reactor, or a Clock in tests."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., object], /) -> Timer: ...


def cancel(timer: Timer) -> None:
    """Cancel it, unless it has fired or was cancelled."""
    if timer.active():
        timer.cancel()


class Transport(Interface):
    """The side of Twisted's TCP transport that is used here."""

    def write(self, data: bytes) -> None: ...
    def loseWriteConnection(self) -> None: ...
    def loseConnection(self) -> None: ...
    def abortConnection(self) -> None: ...
    def registerProducer(self, producer: object, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def setTcpKeepAlive(self, enabled: bool) -> None: ...
    def setTcpNoDelay(self, enabled: bool) -> None: ...


class Owner(Interface):
    """Whose connection it is. Also the transport's producer: told when the buffer is full, and empty."""

    def connected(self, connection: ChatConnection) -> None:
        """It is made."""
        ...

    def heard(self, data: bytes) -> None:
        """The server has sent something."""
        ...

    def all_sent(self) -> None:
        """After ``finish``: everything has gone out, our side is closed."""
        ...

    def lost(self, connection: ChatConnection, reason: Failure) -> None:
        """It is closed, by whomever; the last call."""
        ...

    def pauseProducing(self) -> None: ...
    def resumeProducing(self) -> None: ...
    def stopProducing(self) -> None: ...


class Backoff:
    """How long to wait before the next attempt: exponential, with full jitter.

    Full jitter, because the thousand clients of a shard that died must not come back all at once.
    """

    def __init__(self, fraction: Callable[[], float]) -> None:
        """:param fraction: random numbers from 0 to 1."""
        self._fraction = fraction
        self._most_seconds = BACKOFF_FIRST_SECONDS

    def next_seconds(self) -> float:
        """From 0 up to a bound: 0.1 s, doubled with each call, 10 s at most."""
        seconds = self._most_seconds * self._fraction()
        self._most_seconds = min(self._most_seconds * 2, BACKOFF_MOST_SECONDS)
        return seconds

    def lasted(self, seconds: float) -> None:
        """A connection was up that long.

        A short one changes nothing: a server that takes connections only to close them is not to be
        asked twenty times a second.
        """
        if seconds >= BACKOFF_MOST_SECONDS:
            self._most_seconds = BACKOFF_FIRST_SECONDS


@implementer(IHalfCloseableProtocol)
class ChatConnection(Protocol):
    """One connection to the server.

    Half-closeable, since that is how Twisted tells that everything written has gone out.
    """

    def __init__(self, owner: Owner, clock: Clock) -> None:
        self.all_sent = False
        """Everything written has gone out, and our side is closed."""
        self._owner = owner
        self._clock = clock
        self._abort: Timer | None = None

    @property
    def _wire(self) -> Transport:
        return cast(Transport, self.transport)

    def connectionMade(self) -> None:
        self._wire.setTcpNoDelay(True)
        self._wire.setTcpKeepAlive(True)  # a listener would else never learn that the server's host is gone
        self._wire.registerProducer(self._owner, True)
        self._owner.connected(self)

    def write(self, data: bytes) -> None:
        self._wire.write(data)

    def finish(self) -> None:
        """Send what was written, then close our side; go on reading."""
        self._wire.unregisterProducer()
        self._wire.loseWriteConnection()

    def close(self) -> None:
        """Send what was written, then close, within ``CLOSE_SECONDS``."""
        if self._abort is None:
            self._abort = self._clock.callLater(CLOSE_SECONDS, self.abort)
        self._wire.unregisterProducer()
        self._wire.loseConnection()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._owner.heard(data)

    def writeConnectionLost(self) -> None:
        self.all_sent = True
        self._owner.all_sent()

    def readConnectionLost(self) -> None:
        """The server has closed its side; it will not take anything more."""
        self._owner.pauseProducing()
        self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._abort is not None:
            cancel(self._abort)
        self._owner.lost(self, reason)
