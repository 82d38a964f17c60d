"""A TCP proxy for trial tests: it can cut its connections, swallow what they carry, and end TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.hub.certificates import Issued

__all__ = ["Proxied", "Proxy"]


class Proxied(Protocol):
    """One connection through the proxy: this is its client side, ``_far`` the server side."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.seen = b""
        """What the client has sent."""
        self.is_swallowed = False
        self._wire: Any = None
        self._far: _Far | None = None
        self._early: list[bytes] = []

    def connectionMade(self) -> None:
        self._wire = self.transport
        self.proxy.connections.append(self)
        self.proxy.count(1)
        self._connector = self.proxy.reactor.connectTCP("127.0.0.1", self.proxy.target, _FarFactory(self))

    def far_made(self, far: _Far) -> None:
        self._far = far
        for data in self._early:
            far.wire.write(data)

    def dataReceived(self, data: bytes) -> None:
        self.seen += data
        if self.is_swallowed:
            return
        if self._far is None:
            self._early.append(data)
        else:
            self._far.wire.write(data)

    def far_received(self, data: bytes) -> None:
        if not self.is_swallowed:
            self._wire.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.proxy.connections.remove(self)
        self._connector.disconnect()
        self.proxy.count(-1)

    def far_lost(self) -> None:
        if not self.is_swallowed and self in self.proxy.connections:
            self.cut()

    def swallow(self) -> None:
        """From now on nothing passes, in either direction; both sides stay connected."""
        self.is_swallowed = True

    def cut(self) -> None:
        """Drop both sides."""
        self._wire.abortConnection()


class _Far(Protocol):
    def __init__(self, near: Proxied) -> None:
        self._near = near
        self.wire: Any = None

    def connectionMade(self) -> None:
        self.wire = self.transport
        self._near.proxy.count(1)
        self._near.far_made(self)

    def dataReceived(self, data: bytes) -> None:
        self._near.far_received(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._near.proxy.count(-1)
        self._near.far_lost()


class _FarFactory(ClientFactory):
    noisy = False

    def __init__(self, near: Proxied) -> None:
        self._near = near

    def buildProtocol(self, addr: Any) -> _Far:
        return _Far(self._near)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._near.far_lost()


class Proxy:
    """Listens on a free loopback port and passes everything to ``target``.

    :param target: the port of the server, on loopback.
    :param certificate: speak TLS to the clients, with this certificate.
    :param client_ca: demand of the clients a certificate of this authority.
    """

    def __init__(
        self, reactor: Any, target: int, *, certificate: Issued | None = None, client_ca: str = ""
    ) -> None:
        self.reactor = reactor
        self.target = target
        self.connections: list[Proxied] = []
        self._open = 0
        self._empty: Deferred[None] | None = None
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda addr: Proxied(self)  # type: ignore[method-assign]
        if certificate is None:
            self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        else:
            tls = _Tls(certificate, client_ca)
            self._listening = reactor.listenSSL(0, factory, tls, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    def find(self, *sent: bytes) -> list[Proxied]:
        """The connections whose clients have sent all of this."""
        return [each for each in self.connections if all(part in each.seen for part in sent)]

    def each(self, act: Callable[[Proxied], None]) -> None:
        """Do something to all connections."""
        for connection in list(self.connections):
            act(connection)

    async def stop(self) -> None:
        """Stop listening, cut everything, and wait until it is gone."""
        gone: Deferred[None] = Deferred()
        self._empty = gone
        self.each(Proxied.cut)
        self.count(0)
        await gatherResults([self._listening.stopListening(), gone])

    def count(self, change: int) -> None:
        """A connection, to one side or the other, has come or gone."""
        self._open += change
        if self._empty is not None and not self._open:
            empty, self._empty = self._empty, None
            empty.callback(None)


@implementer(IOpenSSLContextFactory)
class _Tls:
    """OpenSSL reads the files itself."""

    def __init__(self, issued: Issued, client_ca: str) -> None:
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate_file(issued.cert)
        self._context.use_privatekey_file(issued.key)
        if client_ca:
            self._context.load_verify_locations(client_ca)
            self._context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)

    def getContext(self) -> SSL.Context:
        return self._context
