"""What surrounds an edge under test: sessions that note what they are told, and transports in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport

from spread.node.codec import Codec
from spread.node.codes import Disconnect
from spread.node.cork import Cork
from spread.node.outbox import Outbox
from spread.node.session.contract import Edge, Visit
from tests.fakes import FakeTransport

__all__ = ["EdgeTransport", "FakeSession", "FakeSessions", "SocketTransport"]


class FakeSession:
    """A ``contract.EdgeSession`` that keeps what it gets."""

    def __init__(self, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit) -> None:
        self.edge = edge
        self.outbox = outbox
        self.codec = codec
        self.visit = visit
        self.frames: list[bytes] = []
        self.ended: list[Disconnect] = []
        self.lost_count = 0
        self.on_frame: Callable[[bytes], None] = lambda frame: None

    def received(self, frame: bytes) -> None:
        assert not self.ended, "handed over after the end"
        assert not self.lost_count, "handed over after the loss"
        assert isinstance(frame, bytes)
        self.frames.append(frame)
        self.on_frame(frame)

    def end(self, disconnect: Disconnect) -> None:
        self.ended.append(disconnect)
        self.edge.close(disconnect)

    def lost(self) -> None:
        self.lost_count += 1

    def say(self, *messages: bytes) -> None:
        """Write some messages, as one packet."""
        self.outbox.write(self.codec.pack(messages))


class FakeSessions:
    """``contract.Sessions`` without a shard."""

    def __init__(self, clock: IReactorTime | Any, outbox_max_bytes: int = 1 << 20) -> None:
        self.cork = Cork(clock, clock.seconds, 1.0)
        self.outbox_max_bytes = outbox_max_bytes
        self.opened: list[FakeSession] = []
        self.refusal = ""
        self.admitted = 0
        self.on_open: Callable[[FakeSession], None] = lambda session: None

    @property
    def last(self) -> FakeSession:
        return self.opened[-1]

    def admit(self, address: str) -> str:
        if not self.refusal:
            self.admitted += 1
        return self.refusal

    def release(self, address: str) -> None:
        self.admitted -= 1

    def open(self, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit) -> FakeSession:
        session = FakeSession(edge, outbox, codec, visit)
        self.opened.append(session)
        self.on_open(session)
        return session


class EdgeTransport(FakeTransport):
    """A TCP transport as an edge sees it: ``FakeTransport``, and what the way in needs."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__(room)
        self.protocol: Any = None
        self.is_paused = False
        self.has_ended_writing = False
        self.is_closed = False

    def connect(self, protocol: Any) -> None:
        self.protocol = protocol
        protocol.makeConnection(self)

    def getPeer(self) -> Any:
        return type("Peer", (), {"host": "192.0.2.1"})

    def pauseProducing(self) -> None:
        self.is_paused = True

    def resumeProducing(self) -> None:
        self.is_paused = False

    def loseWriteConnection(self) -> None:
        self.has_ended_writing = True

    def loseConnection(self) -> None:
        self.is_closed = True

    @property
    def is_ended(self) -> bool:
        """It was asked to end, in one way or another."""
        return self.is_closed or self.is_aborted

    def lose(self) -> None:
        super().lose()
        self.protocol.connectionLost(connectionDone)


class SocketTransport(StringTransport):
    """A transport for ``twisted.web`` whose socket can be written to as well."""

    protocol: Any = None

    def getHandle(self) -> SocketTransport:
        return self

    def send(self, data: bytes) -> int:
        self.io.write(data)
        return len(data)

    def abortConnection(self) -> None:
        self.disconnecting = True
