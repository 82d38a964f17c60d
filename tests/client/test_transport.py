"""The WebSocket of the client, byte by byte: what comes together, and a server that does not read."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from spread.client.connection import CLOSE_SECONDS
from spread.client.transport import WebSocketTransport
from tests.client.rig import Wire

URI = parse_uri("ws://test/")


class Owner:
    """Says hello when it is opened, and writes down the rest."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def opened(self, transport: Any) -> None:
        self.told.append("opened")
        transport.write(b"hello")

    def received(self, transport: Any, frame: bytes) -> None:
        self.told.append(frame)

    def drained(self, transport: Any) -> None:
        self.told.append("drained")

    def closed(self, transport: Any, code: int, reason: str) -> None:
        self.told.append((code, reason))
        transport.close()

    def gone(self, transport: Any) -> None:
        self.told.append("gone")


class Line:
    """A client's WebSocket and the server at its other end."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.owner = Owner()
        self.wire = Wire([])
        self.transport = WebSocketTransport(self.owner, self.clock, 1000, URI, None, {})
        self.wire.protocol = self.transport
        self.server = ServerProtocol()
        self.transport.makeConnection(self.wire)
        (request,) = self.events()
        assert isinstance(request, Request)
        self.server.send_response(self.server.accept(request))

    def events(self) -> list[Any]:
        """What the client has sent."""
        data = self.wire.value()
        self.wire.clear()
        self.server.receive_data(data)
        return self.server.events_received()

    def deliver(self) -> None:
        """All that the server has sent, at once."""
        self.transport.dataReceived(b"".join(self.server.data_to_send()))


def test_a_close_may_come_with_the_handshake() -> None:
    line = Line()
    line.server.send_text(b"{}")
    line.server.send_close(3500, "invalid token")
    line.deliver()
    assert line.owner.told == ["opened", b"{}", (3500, "invalid token")]
    assert [event.opcode for event in line.events()] == [Opcode.CLOSE]
    line.clock.advance(CLOSE_SECONDS)
    assert line.wire.was_aborted
    assert line.owner.told[-1] == "gone"
    line.transport.close()
    assert not line.clock.getDelayedCalls()


def test_pongs_do_not_pile_up_while_the_server_does_not_read() -> None:
    line = Line()
    line.deliver()
    line.events()
    line.transport.pauseProducing()
    assert not line.transport.is_writable
    for _ in range(100):
        line.server.send_ping(b"x" * 100)
        line.server.send_text(b"1")
        line.deliver()
    assert line.wire.value() == b""
    assert line.owner.told == ["opened", *[b"1"] * 100]
    line.transport.resumeProducing()
    assert line.transport.is_writable
    assert line.owner.told[-1] == "drained"
    line.server.send_ping(b"y")
    line.deliver()
    (pong,) = line.events()
    assert (pong.opcode, bytes(pong.data)) == (Opcode.PONG, b"y")


def test_nothing_is_written_before_it_is_opened() -> None:
    line = Line()
    line.transport.pauseProducing()
    line.transport.resumeProducing()
    assert not line.transport.is_writable
    line.deliver()
    line.transport.stopProducing()
    assert not line.transport.is_writable


def test_fragments_are_put_together_and_bounded() -> None:
    line = Line()
    line.server.send_text(b"a", fin=False)
    for _ in range(1000):
        line.server.send_continuation(b"", fin=False)
    line.server.send_continuation(b"b", fin=True)
    line.server.send_text(b"x" * 600, fin=False)
    line.server.send_continuation(b"x" * 600, fin=True)
    line.deliver()
    assert line.owner.told[:2] == ["opened", b"ab"]
    assert line.owner.told[2][0] == 1009
    assert len(line.owner.told) == 3


@pytest.mark.parametrize("code", [1000, 1001, 4999])
def test_close_codes_are_told(code: int) -> None:
    line = Line()
    line.deliver()
    line.server.send_close(code, "because")
    line.deliver()
    assert line.owner.told == ["opened", (code, "because")]


def test_nothing_is_told_after_close() -> None:
    line = Line()
    line.deliver()
    line.transport.close()
    line.server.send_text(b"1")
    line.deliver()
    assert line.owner.told == ["opened"]
    hello, close = line.events()
    assert isinstance(hello, Frame)
    assert (bytes(hello.data), close.opcode) == (b"hello", Opcode.CLOSE)
    line.wire.drop()
    assert line.owner.told == ["opened", "gone"]
    assert not line.clock.getDelayedCalls()
