"""Bodies of requests: kept up to a limit, refused above it, whatever the peer says about their length."""

from __future__ import annotations

import io
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.web.http import Request
from twisted.web.resource import Resource

from spread.node.web.bodies import BODY_SECONDS, DISCARD_MAX_BYTES, body_of
from spread.node.web.site import answering, quiet_site

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Keeping(Resource):
    """Answers with the body it was sent."""

    isLeaf = True
    max_body_bytes = 1000

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bodies: list[bytes] = []

    def render(self, request: Request) -> bytes:
        self.bodies.append(body_of(request))
        return self.bodies[-1]


class Transport(StringTransport):
    """Twisted's own transports do not mind."""

    def unregisterProducer(self) -> None:
        self.producer = None


class Connection:
    """A connection in memory, to a site with one resource that takes bodies and one that takes none."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.keeping = Keeping()
        health = answering(lambda: (200, "application/json", b"{}"))
        site = quiet_site(self.clock, {"a/keep": self.keeping, "health": health})
        self.protocol: Any = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport = Transport()
        self.protocol.makeConnection(self.transport)

    def says(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.protocol.dataReceived(piece)

    @property
    def heard(self) -> bytes:
        return self.transport.value()

    @property
    def is_cut(self) -> bool:
        return bool(self.transport.disconnecting or self.transport.disconnected)

    @property
    def kept_bytes(self) -> int:
        """What of a body is in memory."""
        request = self.protocol.requests[-1]
        assert type(request.content) is io.BytesIO, "a file"
        return len(request.content.getvalue())


def post(length: int, path: bytes = b"/a/keep", more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: here\r\n%bContent-Length: %d\r\n\r\n" % (path, more, length)


def chunks(*pieces: bytes) -> list[bytes]:
    return [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]


CHUNKED = b"POST /a/keep?x=y HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_of_the_limit_is_kept() -> None:
    connection = Connection()
    connection.says(post(1000), b"x" * 600, b"y" * 400)
    connection.says(CHUNKED, *chunks(b"a" * 999, b"b"), b"0\r\n\r\n")
    connection.says(post(0))
    assert connection.keeping.bodies == [b"x" * 600 + b"y" * 400, b"a" * 999 + b"b", b""]
    assert connection.heard.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert not connection.is_cut


def test_forms_are_not_taken_apart() -> None:
    connection = Connection()
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    connection.says(post(3, more=form), b"a=b")
    multipart = b"Content-Type: multipart/form-data; boundary=b\r\n"
    connection.says(post(5, more=multipart), b"wrong")
    assert connection.keeping.bodies == [b"a=b", b"wrong"]


def test_an_announced_body_over_the_limit_is_refused_before_it_comes() -> None:
    connection = Connection()
    connection.says(post(1001, more=b"Expect: 100-continue\r\n"))
    assert connection.heard.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close\r\n" in connection.heard
    assert connection.heard.endswith(b"\r\n\r\na body may have 1000 bytes at most\n")
    answered = connection.heard
    connection.says(b"x" * 1000)
    assert connection.kept_bytes == 0
    assert not connection.is_cut, "the peer has not sent all of it: it might not see the answer"
    connection.says(b"x" + post(2) + b"{}")
    assert connection.is_cut
    assert connection.heard == answered
    assert connection.keeping.bodies == []


def test_a_chunked_body_over_the_limit_is_refused_when_it_is() -> None:
    connection = Connection()
    connection.says(CHUNKED, *chunks(b"x" * 1000))
    assert connection.heard == b""
    assert connection.kept_bytes == 1000
    connection.says(*chunks(b"y"))
    assert connection.heard.startswith(b"HTTP/1.1 413 ")
    answered = connection.heard
    connection.says(*chunks(b"z" * 5000), b"0\r\n\r\n")
    assert connection.is_cut
    assert connection.heard == answered
    assert connection.keeping.bodies == []


def test_what_nobody_wants_is_taken_in_up_to_a_bound() -> None:
    for start in (post(10 << 30), post(10 << 30, b"/health"), post(10 << 30, b"/nothing")):
        connection = Connection()
        connection.says(start)
        connection.says(*[b"x" * 65536] * (DISCARD_MAX_BYTES // 65536))
        assert not connection.is_cut
        assert connection.kept_bytes == 0
        connection.says(b"x")
        assert connection.is_cut
        connection.says(b"x" * 65536)  # what was in the kernel


def test_one_read_may_hold_many_chunks_after_the_end() -> None:
    connection = Connection()
    piece = chunks(b"x" * (DISCARD_MAX_BYTES // 2))[0]
    connection.says(CHUNKED.replace(b"/a/keep", b"/health") + piece * 4 + b"0\r\n\r\n")
    assert connection.is_cut
    assert connection.heard == b""


def test_a_body_may_take_some_time_only() -> None:
    for path in (b"/a/keep", b"/health"):
        connection = Connection()
        connection.says(post(20, path), b"x")
        connection.clock.advance(BODY_SECONDS)
        connection.says(b"x")
        assert not connection.is_cut
        connection.clock.advance(0.1)
        connection.says(b"x")
        assert connection.is_cut
    slow_in_asking = Connection()
    slow_in_asking.clock.advance(BODY_SECONDS * 1.5)
    slow_in_asking.says(post(1) + b"x")
    assert slow_in_asking.keeping.bodies == [b"x"]


def test_a_peer_that_does_not_take_the_refusal_is_cut() -> None:
    connection = Connection()
    connection.says(post(1001), b"x" * 1001)
    assert not connection.transport.disconnected
    connection.clock.pump([BODY_SECONDS, 15])
    assert connection.transport.disconnected


def test_connections_that_say_nothing_are_no_news() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        connection = Connection()
        connection.clock.advance(60)
        assert connection.transport.disconnecting
        connection.clock.advance(15)
        assert connection.transport.disconnected
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert [event["log_level"] for event in events] == [LogLevel.debug] * 2


def test_expect_100_continue() -> None:
    connection = Connection()
    connection.says(post(2, more=b"Expect: 100-continue\r\n"))
    assert connection.heard == CONTINUE
    connection.says(b"{}")
    assert connection.heard.startswith(CONTINUE + b"HTTP/1.1 200 OK\r\n")
    assert connection.heard.endswith(b"\r\n\r\n{}")


def test_lengths_that_are_none() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        for length in (b"-1", b"1e3", b"0x10", b"", b"9" * 5000, b"1, 1", b"1\r\nContent-Length: 2"):
            connection = Connection()
            connection.says(b"POST /a/keep HTTP/1.1\r\nHost: here\r\nContent-Length: %b\r\n\r\nxx" % length)
            assert connection.heard.startswith(b"HTTP/1.1 400 "), length
            assert connection.is_cut, length
            assert connection.keeping.bodies == [], length
        smuggling = Connection()
        smuggling.says(post(2, more=b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n")
        assert smuggling.heard.startswith(b"HTTP/1.1 400 ")
        torn = Connection()
        torn.says(CHUNKED, b"zz\r\nxx")
        assert torn.heard.startswith(b"HTTP/1.1 400 ")
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert events == []


def test_only_http_1_is_offered_over_tls() -> None:
    assert quiet_site(Clock(), {}).acceptableProtocols() == [b"http/1.1"]
