"""A client whose server is the test itself: one fake clock, no sockets, lines of JSON in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from spread.client import Client, Subscription
from spread.node.wire import json
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    ConnectResult,
    Error,
    Event,
    Push,
    Reply,
    Request,
    Result,
    SubscribeRequest,
    SubscribeResult,
)

__all__ = ["Endpoint", "Rig", "Wire", "failure_of", "is_pending", "result_of"]


class Wire(StringTransport):
    """The socket of a client, seen from the server's side."""

    def __init__(self, connections: list[Wire]) -> None:
        super().__init__()
        self.protocol: Any = None
        self.connections = connections
        self.is_closed = False
        self.was_aborted = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Part of ITCPTransport."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Part of ITCPTransport."""

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self, *_: Any) -> None:
        self.was_aborted = True
        self.drop()

    def drop(self) -> None:
        """The connection breaks."""
        if not self.is_closed:
            self.is_closed = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def heard(self) -> list[Command]:
        """What the client has said since the last time."""
        data = self.value()
        self.clear()
        return [command for line in data.splitlines() for command in json.decode(line)]

    def frames(self) -> list[bytes]:
        return self.value().splitlines()

    def say(self, *replies: Reply) -> None:
        """Send these in one frame."""
        self.protocol.dataReceived(json.join(map(json.encode_reply, replies)) + b"\n")

    def push(self, channel: str, *events: Event) -> None:
        self.say(*(Reply(0, Push(channel, event)) for event in events))


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects at once, never, or not."""

    def __init__(self) -> None:
        self.connections: list[Wire] = []
        self.refuses = False
        self.hangs = False
        self.cancelled = 0

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        if self.refuses:
            return fail(ConnectionRefusedError())
        if self.hangs:
            return Deferred(self._cancelled)
        wire = Wire(self.connections)
        self.connections.append(wire)
        wire.protocol = protocolFactory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        wire.protocol.makeConnection(wire)
        return succeed(wire.protocol)

    def _cancelled(self, _: object) -> None:
        self.cancelled += 1


class Rig:
    """A client, its clock, its server, and all that it told."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        options.setdefault("fraction", lambda: 0.0)
        self.client = Client(self.clock, "tcp://test:1", endpoint=cast(Any, self.endpoint), **options)
        self.told: list[Any] = []
        for name, hook in vars(self.client).items():
            if name.startswith("on_"):
                hook(self._teller(""))

    def _teller(self, prefix: str) -> Callable[..., None]:
        def tell(*values: Any) -> None:
            several = (prefix, *values) if prefix else values
            self.told.append(several if len(several) > 1 else several[0])

        return tell

    def listen(self, subscription: Subscription) -> Subscription:
        for name, hook in vars(subscription).items():
            if name.startswith("on_"):
                hook(self._teller(subscription.channel))
        return subscription

    def news(self) -> list[Any]:
        """What was told since the last time."""
        told, self.told[:] = list(self.told), []
        return told

    @property
    def wire(self) -> Wire:
        """The newest connection."""
        return self.endpoint.connections[-1]

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)

    def asked(self, *types: type[Request]) -> list[Command]:
        """What the client asks now; these types, in this order, and nothing else."""
        self.turn()
        commands = self.wire.heard()
        assert [type(command.request) for command in commands] == list(types)
        return commands

    def answer(self, command: Command, body: Result | Error) -> None:
        self.wire.say(Reply(command.id, body))

    def accept(self, **fields: Any) -> ConnectRequest:
        """Answer a connect."""
        (command,) = self.asked(ConnectRequest)
        values = {"client": "c1", "version": "test 1"} | fields
        self.answer(command, ConnectResult(**values))
        assert isinstance(command.request, ConnectRequest)
        return command.request

    def connected(self, **fields: Any) -> ConnectRequest:
        """Connect the client."""
        self.client.connect().addErrback(lambda _: None)
        return self.accept(**fields)

    def admit(self, **fields: Any) -> SubscribeRequest:
        """Answer a subscribe."""
        (command,) = self.asked(SubscribeRequest)
        self.answer(command, SubscribeResult(**fields))
        assert isinstance(command.request, SubscribeRequest)
        return command.request

    def subscribed(
        self, channel: str = "c", /, *, result: dict[str, Any] | None = None, **options: Any
    ) -> Subscription:
        """A subscription that is SUBSCRIBED."""
        subscription = self.listen(self.client.new_subscription(channel, **options))
        subscription.subscribe().addErrback(lambda _: None)
        self.admit(**(result or {}))
        return subscription


def result_of(deferred: Deferred[Any]) -> Any:
    """What it has fired with."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "it has not fired"
    assert not isinstance(results[0], Failure), results[0]
    return results[0]


def failure_of(deferred: Deferred[Any]) -> Any:
    """The exception that it has failed with."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "it has not fired"
    assert isinstance(results[0], Failure), results[0]
    return results[0].value


def is_pending(deferred: Deferred[Any]) -> bool:
    return not deferred.called
