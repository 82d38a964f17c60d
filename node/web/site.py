"""The public HTTP port.

    GET /health      {} and 200 as long as the process serves; what a load balancer asks

Everything else is 404, as JSON that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import ServerFactory, connectionDone
from twisted.python.failure import Failure
from twisted.web.http import Request as HttpRequest
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from spread.hub.reactor import Clock
from spread.node.web.bodies import BoundedSite

__all__ = ["BoundedFactory", "answering", "http_site", "quiet_site"]

IDLE_SECONDS = 60
"""An HTTP connection without a request is closed after this time."""


class _Answer(Resource):
    """A resource that answers GET and HEAD with what a function gives."""

    isLeaf = True

    def __init__(self, answer: Callable[[], tuple[int, str, bytes]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._answer = answer

    def render(self, request: HttpRequest) -> bytes:
        if request.method in (b"GET", b"HEAD"):
            status, content_type, body = self._answer()
        else:
            status, content_type, body = 405, "application/json", b'{"error":"only GET and HEAD"}\n'
            request.setHeader(b"allow", b"GET, HEAD")
        return _answered(request, status, content_type, body)


def _answered(request: HttpRequest, status: int, content_type: str, body: bytes) -> bytes:
    """Set what goes with an answer; gives what ``render`` returns."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", content_type.encode())
    request.setHeader(b"cache-control", b"no-store")
    if request.method == b"HEAD":
        # Twisted would cut off a body, and log that each time.
        request.setHeader(b"content-length", b"%d" % len(body))
        return b""
    return body


class _Root(Resource):
    """Resources by their whole path, matched exactly; for all else a 404 in JSON.

    One with a true attribute ``has_children``, whose path ends with a slash, gets what is right below it.
    """

    isLeaf = True

    def __init__(self, resources: dict[bytes, Resource]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resources = resources
        here = " ".join(path.decode() for path in resources)
        self._nothing = msgspec.json.encode({"error": "not found", "here": here}) + b"\n"

    def render(self, request: HttpRequest) -> Any:
        resource = self._resources.get(request.path)
        if resource is None:
            parent = self._resources.get(request.path[: request.path.rfind(b"/") + 1])
            resource = parent if getattr(parent, "has_children", False) else None
        if resource is not None:
            return resource.render(request)
        return _answered(request, 404, "application/json", self._nothing)


def answering(answer: Callable[[], tuple[int, str, bytes]]) -> Resource:
    """A resource that answers GET with ``(status, content type, body)``."""
    return _Answer(answer)


def quiet_site(reactor: Clock, children: dict[str, Resource]) -> Site:
    """A site of these resources, that logs no requests.

    :param children: by path without the first slash. One with an attribute ``max_body_bytes`` gets bodies up
        to that size (``spread.node.web.bodies.body_of``).
    """
    resources = {f"/{name}".encode(): resource for name, resource in children.items()}
    limits = {path: getattr(resource, "max_body_bytes", None) for path, resource in resources.items()}
    site = BoundedSite(
        _Root(resources),
        reactor,
        IDLE_SECONDS,
        {path: limit for path, limit in limits.items() if limit is not None},
    )
    site.noisy = False
    site.displayTracebacks = False
    site.log = lambda request: None  # type: ignore[method-assign]  # an access log is the balancer's work
    return site


def http_site(reactor: Clock) -> Site:
    """What the public HTTP port serves."""
    return quiet_site(reactor, {"health": answering(lambda: (200, "application/json", b"{}"))})


class BoundedFactory(ServerFactory):
    """At most so many connections at a time; one more is closed at once, and told to ``refused``.

    An HTTP connection that says nothing lives for ``IDLE_SECONDS``: without a bound, whoever opens enough of
    them takes all the files that this process may open. A connection that is taken over
    (``spread.node.edge.takeover``) is a client from then on, which other limits bound: it is not counted.
    """

    noisy = False

    def __init__(self, wrapped: Any, max_connections: int, refused: Callable[[], None]) -> None:
        self.connections = 0
        """How many there are now."""
        self._wrapped = wrapped
        self._max_connections = max_connections
        self._refused = refused

    def doStart(self) -> None:
        self._wrapped.doStart()
        super().doStart()  # type: ignore[no-untyped-call]

    def doStop(self) -> None:
        self._wrapped.doStop()
        super().doStop()  # type: ignore[no-untyped-call]

    def buildProtocol(self, addr: Any) -> Any:
        if self.connections >= self._max_connections:
            self._refused()
            return None
        protocol = self._wrapped.buildProtocol(addr)
        return None if protocol is None else _Counted(self, protocol)


@implementer(IProtocol)
class _Counted:
    """A connection that counts. It stands between a transport and its protocol, on the way in only."""

    __slots__ = ("_factory", "_is_counted", "_protocol")

    def __init__(self, factory: BoundedFactory, protocol: Any) -> None:
        self._factory = factory
        self._protocol = protocol
        self._is_counted = True
        factory.connections += 1

    def makeConnection(self, transport: Any) -> None:
        self._protocol.makeConnection(transport)

    def connectionMade(self) -> None:
        """Part of the interface; the protocol behind calls its own."""

    def dataReceived(self, data: bytes) -> Any:
        return self._protocol.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.taken_over()
        self._protocol.connectionLost(reason)

    def taken_over(self) -> None:
        """The transport has another protocol now, or none. Idempotent."""
        self._factory.connections -= self._is_counted
        self._is_counted = False
