"""Connections taken over from twisted.web: in memory, over TCP and Unix sockets; over TLS in test_tls."""

from __future__ import annotations

import gc
import socket
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from spread.node.edge.takeover import take_over
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.web.site import IDLE_SECONDS, BoundedFactory, answering, quiet_site

reactor = cast(Any, global_reactor)

REQUEST = b"GET /taken HTTP/1.1\r\nHost: here\r\n\r\n"


class Taker(Protocol):
    """Who takes over: notes what it is told, and says so on the connection."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.told.append("made")
        self.transport.write(b"taken!")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.told.append(data)
        self.transport.write(data.upper())  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.told.append("lost")
        self.gone.callback(None)

    @property
    def heard(self) -> bytes:
        return b"".join(each for each in self.told if isinstance(each, bytes))


class Taken(Resource):
    """A resource whose requests become something else, at once or when told to."""

    isLeaf = True

    def __init__(self, at_once: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taker = Taker()
        self.at_once = at_once
        self.request: HttpRequest | None = None
        self.results: list[bool] = []
        self.left: list[weakref.ref[Any]] = []

    def render(self, request: HttpRequest) -> int:
        self.request = request
        if self.at_once:
            self.take()
        return NOT_DONE_YET

    def take(self) -> None:
        request, self.request = self.request, None
        assert request is not None
        if request.channel is not None:
            self.left = [weakref.ref(request), weakref.ref(request.channel)]
        self.results.append(take_over(request, self.taker))


class Desk:
    """A site on a clock, in memory."""

    def __init__(self, at_once: bool = True) -> None:
        self.clock = Clock()
        self.resource = Taken(at_once)
        children = {"taken": self.resource, "health": answering(lambda: (200, "text/plain", b"fine"))}
        self.site = quiet_site(self.clock, children)
        self.refused = 0
        self.factory = BoundedFactory(self.site, 1, self._refuse)
        self.transport = StringTransportWithDisconnection()
        self.connect(self.transport)

    def connect(self, transport: StringTransport) -> bool:
        protocol: Any = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        if protocol is None:
            return False
        transport.protocol = protocol  # type: ignore[attr-defined]
        protocol.makeConnection(transport)
        return True

    def receive(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)

    def _refuse(self) -> None:
        self.refused += 1


def test_what_follows_the_request_is_handed_over() -> None:
    desk = Desk()
    desk.receive(REQUEST + b"behind\r\nit\n")
    taker = desk.resource.taker
    assert desk.transport.protocol is taker and taker.transport is desk.transport
    assert taker.told == ["made", b"behind\r\nit\n"]
    desk.receive(b"later")
    assert desk.transport.value() == b"taken!BEHIND\r\nIT\nLATER"
    desk.transport.loseConnection()
    assert taker.told[-1] == "lost"
    assert desk.resource.results == [True]


def test_a_request_with_a_body_byte_by_byte() -> None:
    desk = Desk()
    for byte in b"POST /taken HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc!?":
        desk.receive(bytes([byte]))
    assert desk.resource.taker.told == ["made", b"!", b"?"]


def test_a_body_and_what_follows_in_one_read() -> None:
    for framing in (
        b"Content-Length: 3\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ):
        desk = Desk()
        desk.receive(b"POST /taken HTTP/1.1\r\nHost: here\r\n" + framing + b"tail")
        assert desk.resource.taker.heard == b"tail"


def test_a_takeover_that_comes_later() -> None:
    desk = Desk(at_once=False)
    desk.receive(REQUEST + b"a")
    for _ in range(5):
        desk.receive(b"b" * 4096)
    assert desk.transport.producerState == "paused", "the channel has heard enough"
    desk.resource.take()
    assert desk.resource.taker.heard == b"a" + b"b" * 5 * 4096
    assert desk.transport.producerState == "producing"
    assert desk.transport.producer is None


def test_a_request_behind_others() -> None:
    desk = Desk()
    desk.receive(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" * 3 + REQUEST + b"x")
    assert desk.transport.value().count(b"200 OK") == 3
    assert desk.transport.value().endswith(b"finetaken!X")


def test_no_clock_ends_it() -> None:
    desk = Desk()
    desk.clock.advance(IDLE_SECONDS - 1)
    desk.receive(REQUEST)
    assert desk.clock.getDelayedCalls() == []
    desk.clock.advance(3 * IDLE_SECONDS)
    assert not desk.transport.disconnecting


def test_the_objects_of_http_are_gone_at_once() -> None:
    gc.collect()
    gc.disable()
    try:
        desk = Desk()
        left = weakref.ref(desk.transport.protocol._protocol)
        desk.receive(REQUEST + b"x")
        assert [each() for each in (left, *desk.resource.left)] == [None, None, None], "left to the collector"
    finally:
        gc.enable()


def test_it_does_not_count_as_an_http_connection_any_longer() -> None:
    desk = Desk()
    assert desk.factory.connections == 1
    assert not desk.connect(StringTransport()) and desk.refused == 1
    desk.receive(REQUEST)
    assert desk.factory.connections == 0
    assert desk.connect(StringTransport()) and desk.factory.connections == 1
    desk.transport.loseConnection()
    assert desk.factory.connections == 1


def test_a_connection_that_is_gone_cannot_be_taken() -> None:
    desk = Desk(at_once=False)
    desk.receive(REQUEST)
    desk.transport.protocol.connectionLost(Failure(ConnectionDone()))
    desk.resource.take()
    assert (desk.resource.results, desk.resource.taker.told) == ([False], [])
    assert desk.factory.connections == 0


def test_a_connection_that_is_ending_cannot_be_taken() -> None:
    desk = Desk(at_once=False)
    desk.receive(REQUEST)
    desk.transport.disconnecting = True
    desk.resource.take()
    assert (desk.resource.results, desk.resource.taker.told) == ([False], [])


class Failing(TestCase):
    def test_a_protocol_that_fails_is_cut_off(self) -> None:
        for method in ("connectionMade", "dataReceived"):
            desk = Desk()
            taker = desk.resource.taker

            def fail(*_: object) -> None:
                raise RuntimeError("a fault of ours")

            setattr(taker, method, fail)
            desk.transport.abortConnection = desk.transport.loseConnection  # type: ignore[method-assign]
            desk.receive(REQUEST + b"x")
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
            self.assertEqual(taker.told[-1], "lost")


class RealSockets(TestCase):
    """With the reactor's own transports, from which a takeover must be invisible to the peer."""

    def _serve(self) -> tuple[Taken, BoundedFactory]:
        resource = Taken()
        children = {"taken": resource, "health": answering(lambda: (200, "text/plain", b"fine"))}
        site = quiet_site(reactor, children)
        return resource, BoundedFactory(site, 1, lambda: None)

    async def _converse(self, resource: Taken, factory: BoundedFactory, peer: socket.socket) -> None:
        peer.setblocking(False)
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n" + REQUEST + b"x" * 100_000)
        got = b""
        while len(got.rpartition(b"fine")[2]) < 6 + 100_000:
            await _turn()
            try:
                got += peer.recv(1 << 20)
            except BlockingIOError:
                continue
        self.assertEqual(got.rpartition(b"fine")[2], b"taken!" + b"X" * 100_000)
        self.assertEqual(factory.connections, 0)
        peer.close()
        await resource.taker.gone
        self.assertEqual(resource.taker.told[-1], "lost")

    async def test_tcp(self) -> None:
        resource, factory = self._serve()
        port: Any = start_listening(reactor, bind("127.0.0.1", 0), factory)
        peer = socket.create_connection(("127.0.0.1", port.getHost().port))
        await self._converse(resource, factory, peer)
        await stop_listening(port, inherited=False)

    async def test_unix(self) -> None:
        resource, factory = self._serve()
        with TemporaryDirectory() as directory:
            path = Path(directory, "socket")
            port = reactor.listenUNIX(str(path), factory)
            peer = socket.socket(socket.AF_UNIX)
            peer.connect(str(path))
            await self._converse(resource, factory, peer)
            await port.stopListening()


def _turn() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    reactor.callLater(0.001, done.callback, None)
    return done
