"""Requests over HTTP, with bodies that are bounded in size and in time.

How much of a body is kept depends on the path (``BoundedSite.body_limits``), and is nothing unless a resource
asks for it. A body over the limit is answered 413 as soon as that is known, which is before any of it came if
its length was announced; the resource never sees the request. What still comes of it is taken in and
forgotten, so that the peer reads the answer; then the connection ends. Nothing is ever written to the disk.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.protocols.basic import LineReceiver
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from spread.hub.reactor import Clock

__all__ = ["BODY_SECONDS", "DISCARD_MAX_BYTES", "BoundedRequest", "BoundedSite", "body_of", "is_protobuf"]

BODY_SECONDS = 30.0
"""How long a body may take; who sends a byte now and then would keep its connection for ever."""

DISCARD_MAX_BYTES = 1 << 20
"""How much of a body may come that nobody wants, before its connection is cut."""

_LENGTH_MAX_BYTES = 64
"""The longest header line that tells the length of a body."""

_TOO_LARGE = (
    b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
)


def _as_debug(event: LogEvent) -> None:
    globalLogPublisher({**event, "log_level": LogLevel.debug})


class _Channel(HTTPChannel):
    """HTTP/1 alone, and a peer cannot make it raise."""

    # It says that a connection was idle for too long: keep-alive makes this an everyday thing, and anyone can
    # make it happen a thousand times.
    _log = Logger(observer=_as_debug)  # type: ignore[arg-type]

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        if transport is None or transport.disconnecting:
            # Over TLS there is more to read after an end that we have begun; HTTPChannel is not ready for it.
            return
        # Not for each byte, as HTTPChannel does: who sends one now and then would keep a connection for ever.
        # The time for a request begins with it.
        if not self.requests and not self._buffer:
            self.resetTimeout()  # type: ignore[no-untyped-call]
        LineReceiver.dataReceived(self, data)

    def headerReceived(self, line: bytes) -> bool:
        # Python refuses to read a number of more than 4300 digits, and Twisted does not expect that.
        if len(line) > _LENGTH_MAX_BYTES and line[:15].lower() == b"content-length:":
            self._respondToBadRequestAndDisconnect()  # type: ignore[no-untyped-call]
            return False
        return bool(super().headerReceived(line))  # type: ignore[no-untyped-call]


class BoundedSite(Site):
    """A site whose requests are ``BoundedRequest``.

    :param body_limits: how many bytes of a body are kept, by path; of all others nothing is.
    """

    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, resource: Any, reactor: Clock, timeout: float, body_limits: dict[bytes, int]) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            resource,
            requestFactory=BoundedRequest,
            timeout=timeout,
            reactor=reactor,
            parsePOSTFormSubmission=False,  # no resource takes forms, and their parser is not bounded
        )
        self.body_limits = body_limits

    def acceptableProtocols(self) -> list[bytes]:
        """Over TLS too: HTTP/1 alone."""
        return [b"http/1.1"]


class BoundedRequest(Request):
    """See the top of this module."""

    channel: Any
    _limit: int | None = None
    _is_refused = False
    _is_dropped = False
    _discarded = 0
    _body_ends = 0.0

    def gotLength(self, length: int | None) -> None:
        """The headers are here; ``None``: the body will tell its length as it comes."""
        self.content = BytesIO()
        site: Any = self.channel.site
        self._body_ends = site.reactor.seconds() + BODY_SECONDS
        # Twisted tells the path of a request after its body only.
        path: bytes = self.channel._path.partition(b"?")[0]
        self._limit = site.body_limits.get(path)
        if self._limit is not None and length is not None and length > self._limit:
            # No 100 Continue behind our answer.
            self.requestHeaders.removeHeader(b"expect")
            self._refuse(self._limit)

    def handleContentChunk(self, data: bytes) -> None:
        """Some of the body."""
        content = self.content
        if self._is_dropped or content is None:
            return
        limit = self._limit
        if limit is not None and not self._is_refused:
            if content.tell() + len(data) <= limit:
                content.write(data)
                data = b""
            else:
                self._refuse(limit)
        self._discarded += len(data)
        if (
            self._discarded > DISCARD_MAX_BYTES
            or self.channel.site.reactor.seconds() > self._body_ends  # no timer: the next byte tells
        ):
            self._is_dropped = True
            self.channel.transport.abortConnection()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it is here."""
        if self._is_refused:
            self.channel.setTimeout(BODY_SECONDS)  # for a peer that does not take the answer
            self.channel.loseConnection()
        elif not self._is_dropped:
            super().requestReceived(command, path, version)  # type: ignore[no-untyped-call]

    def _refuse(self, limit: int) -> None:
        self._is_refused = True
        self.content = BytesIO()
        text = b"a body may have %d bytes at most\n" % limit
        self.channel.transport.write(_TOO_LARGE % (len(text), text))


def body_of(request: Any) -> bytes:
    """The body of a request, which is there when its resource is asked to render."""
    body: bytes = request.content.getvalue()
    return body


def is_protobuf(request: Any) -> bool:
    """Whether the body of a request is Protobuf; else it is JSON."""
    content_type: bytes = request.getHeader(b"content-type") or b""
    return content_type.partition(b";")[0].strip().lower() == b"application/octet-stream"
