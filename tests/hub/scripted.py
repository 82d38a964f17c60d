"""A connection to Redis whose other end is the test: it reads the commands and says the replies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from spread.hub.dialect import CLASSIC, Dialect
from spread.hub.link import CommandProtocol, Handshake, SubscriberProtocol

__all__ = [
    "OK",
    "FakeEndpoint",
    "Outcome",
    "Wire",
    "answer",
    "captured",
    "command_wire",
    "handshake",
    "message",
    "noperm",
    "subscriber_wire",
]

OK = b"+OK\r\n"


def answer(value: Any) -> bytes:
    """A reply in the Redis protocol: bytes, int, None, a list of these; a str is an error."""
    match value:
        case None:
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case int():
            return b":%d\r\n" % value
        case str():
            return f"-{value}\r\n".encode()
    return b"*%d\r\n" % len(value) + b"".join(answer(item) for item in value)


def message(channel: bytes, payload: bytes) -> bytes:
    """What a subscriber receives for a publication."""
    return answer([b"message", channel, payload])


def noperm(what: str = "channel") -> str:
    """What an ACL says that forbids something."""
    return f"NOPERM No permissions to access a {what}"


def handshake(**given: Any) -> Handshake:
    """A handshake with a hub called ``there`` that waits one second for replies."""
    return Handshake(**{"hub": "there", "client_name": "spread-aa", "reply_seconds": 1.0, **given})


@implementer(ITCPTransport)
class Wire(StringTransport):
    """A transport that keeps each write, and drops the connection one turn after ``abortConnection``."""

    def __init__(self, clock: Clock, protocol: Any) -> None:
        super().__init__()
        self.clock = clock
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.options: list[str] = []
        self.is_cut = False
        self.is_lost = False
        self._reader = hiredis.Reader()
        protocol.makeConnection(self)

    # -- what Twisted calls

    def write(self, data: bytes) -> None:
        if not self.is_lost:
            self.writes.append(data)
            self._reader.feed(data)

    def abortConnection(self) -> None:
        assert not self.is_cut, "cut twice"
        self.is_cut = True
        self.clock.callLater(0, self.lose, ConnectionAborted())

    def loseConnection(self) -> None:
        """A polite close waits for the peer, which does not answer: nothing happens."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options.append("no delay" if enabled else "delay")

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options.append("keep alive" if enabled else "no keep alive")

    # -- what the test does

    def commands(self) -> list[list[bytes]]:
        """The commands that came since the last call; first lets the turn end."""
        self.clock.advance(0)
        commands = []
        while (command := self._reader.gets()) is not False:
            commands.append(command)
        return commands

    def command(self) -> list[bytes]:
        """The one command that came."""
        (command,) = self.commands()
        return command

    def says(self, *replies: bytes) -> None:
        """All of it arrives in one read."""
        self.protocol.dataReceived(b"".join(replies))

    def lose(self, reason: Exception | None = None) -> None:
        """The connection is gone."""
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    def introduces(self, subscribes: bool = False) -> None:
        """Let the handshake succeed, whatever it asks.

        :param subscribes: it ends with a SUBSCRIBE.
        """
        ended = False
        while not ended:
            name, *arguments = self.command()
            if name == b"SUBSCRIBE":
                self.says(answer([b"subscribe", arguments[0], 1]))
            else:
                self.says(answer([b"master", 0, []]) if name == b"ROLE" else OK)
            ended = name == (b"SUBSCRIBE" if subscribes else b"CLIENT")

    def confirms(self, forbidden: bytes | None = None) -> list[list[bytes]]:
        """Answer the SUBSCRIBE and UNSUBSCRIBE that came as Redis does; gives them.

        :param forbidden: a channel that an ACL forbids: the whole command is refused.
        """
        commands = self.commands()
        for name, *channels in commands:
            if name == b"SUBSCRIBE" and forbidden in channels:
                self.says(answer(noperm()))
            elif name in (b"SUBSCRIBE", b"UNSUBSCRIBE"):
                self.says(*(answer([name.lower(), channel, 1]) for channel in channels))
        return commands


def command_wire(clock: Clock, **given: Any) -> tuple[CommandProtocol, Wire]:
    """A command connection that is open, without a handshake."""
    protocol = CommandProtocol(clock, handshake(**given))
    return protocol, Wire(clock, protocol)


def subscriber_wire(
    clock: Clock, dialect: Dialect = CLASSIC, **given: Any
) -> tuple[SubscriberProtocol, Wire]:
    """A subscriber connection that is open, without a handshake."""
    protocol = SubscriberProtocol(clock, handshake(**given), b"own", dialect=dialect)
    return protocol, Wire(clock, protocol)


class FakeEndpoint:
    """Where a link connects; the test decides how each attempt ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.attempts: list[float] = []
        """When each attempt began."""
        self.cancelled = 0
        self._pending: list[tuple[Any, Deferred[Any]]] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        attempt: Deferred[Any] = Deferred(self._cancel)
        self.attempts.append(self.clock.seconds())
        self._pending.append((factory, attempt))
        return attempt

    def _cancel(self, attempt: Deferred[Any]) -> None:
        self.cancelled += 1
        self._pending.clear()

    def accept(self) -> Wire:
        """The pending attempt succeeds."""
        factory, attempt = self._pending.pop()
        protocol = factory.buildProtocol(None)
        wire = Wire(self.clock, protocol)
        attempt.callback(protocol)
        return wire

    def refuse(self, error: Exception) -> None:
        """The pending attempt fails."""
        _, attempt = self._pending.pop()
        attempt.errback(error)


class Outcome:
    """What became of a Deferred; takes its failure, so that nobody logs it."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.fired: list[Any] = []
        deferred.addCallbacks(self.fired.append, lambda failure: self.fired.append(failure.value))

    @property
    def value(self) -> Any:
        """The result or the exception."""
        (value,) = self.fired
        return value


@contextmanager
def captured(matching: Callable[[LogEvent], bool] = lambda event: True) -> Iterator[list[str]]:
    """What is logged by ours, formatted."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("spread.") and matching(event):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)
