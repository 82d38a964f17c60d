"""The public HTTP port, asked over real connections and through its resources."""

from __future__ import annotations

import json
from io import BytesIO

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport, StringTransportWithDisconnection
from twisted.logger import LogEvent, globalLogPublisher

from spread.node.web.site import IDLE_SECONDS, BoundedFactory, answering, http_site, quiet_site
from tests.fakes import HttpAnswer, asked


def get(path: str, method: str = "GET") -> HttpAnswer:
    return asked(http_site(Clock()), f"{method} {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def test_health() -> None:
    answer = get("/health")
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


def test_head_has_no_body_and_is_not_logged() -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        answer = get("/health", "HEAD")
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert events == []
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == "2"


def test_everything_else_is_not_found_in_json() -> None:
    for path in ("/", "/healthz", "/favicon.ico", "/a/b/c", "/%00", "//health", "/?health"):
        answer = get(path)
        assert answer.status == 404, path
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.body) == {"error": "not found", "here": "/health"}


def test_other_methods_are_refused() -> None:
    for method in ("POST", "PUT", "DELETE", "BREW"):
        answer = get("/health", method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert json.loads(answer.body) == {"error": "only GET and HEAD"}
        assert get("/nothing", method).status == 404


def test_targets_that_are_no_path() -> None:
    assert get("nowhere").status == 404
    assert get("*").status == 405
    assert get("*", "OPTIONS").status == 200


def test_a_body_is_taken_in_and_not_kept() -> None:
    body = b"x" * 300_000
    for framing in (
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ):
        kept: list[bytes] = []
        site = quiet_site(Clock(), {})

        def remember(request: object, kept: list[bytes] = kept) -> None:
            content = request.content  # type: ignore[attr-defined]
            assert isinstance(content, BytesIO), "a file, for a body that could be large"
            content.seek(0)
            kept.append(content.read())

        site.log = remember  # type: ignore[method-assign]
        answer = asked(site, b"POST / HTTP/1.1\r\nHost: here\r\n" + framing)
        assert answer.status == 404
        assert kept == [b""]


def test_no_request_is_logged_and_no_traceback_shown() -> None:
    def fails() -> tuple[int, str, bytes]:
        raise RuntimeError("a secret")

    site = quiet_site(Clock(), {"fails": answering(fails)})
    assert not site.displayTracebacks
    assert site.log(None) is None  # type: ignore[func-returns-value, arg-type]


def test_a_connection_without_a_request_is_closed_after_a_while() -> None:
    clock = Clock()
    site = http_site(clock)
    protocol = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)  # type: ignore[arg-type]
    clock.advance(IDLE_SECONDS - 1)
    assert not transport.disconnecting
    clock.advance(2)
    assert transport.disconnecting


def test_connections_are_bounded_and_counted() -> None:
    refused: list[None] = []
    factory = BoundedFactory(ServerFactory.forProtocol(Protocol), 2, lambda: refused.append(None))

    def connect() -> StringTransportWithDisconnection | None:
        protocol = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        if protocol is None:
            return None
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        return transport

    first, second = connect(), connect()
    assert first is not None and second is not None
    assert connect() is None and len(refused) == 1
    first.loseConnection()
    assert connect() is not None and len(refused) == 1
    assert connect() is None and len(refused) == 2
