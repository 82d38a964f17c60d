"""Stand-ins for what surrounds a part under test: small, written by hand, and honest.

Honest means that each does what the real thing does as far as the part can tell, the awkward habits
included: ``FakeTransport`` calls ``resumeProducing`` out of ``registerProducer``, as Twisted does, and
``Loopback`` delivers one turn later, as a hub does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.server import Site

from spread.hub.api import Event, Publication, ShardIdentity
from spread.hub.memory import Exchange, MemoryHub
from spread.node.channels import Channels
from spread.node.codec import Codec
from spread.node.cork import Cork
from spread.node.encoders import TEXT
from spread.node.fanout import Fanout
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.outbox import Outbox
from spread.node.pressure import Pressure
from spread.node.session.text import Session, Surroundings
from spread.node.settings import ChannelSettings, HubSettings, TextSettings

__all__ = [
    "Ears",
    "FakeClient",
    "FakeEdge",
    "FakeMember",
    "FakeTransport",
    "HttpAnswer",
    "Loopback",
    "TurnClock",
    "asked",
    "identity",
]


def identity(incarnation: str = "00000000000000aa", pid: int = 1) -> ShardIdentity:
    """A shard's identity, of a machine that nobody can look into."""
    return ShardIdentity(incarnation=incarnation, host="here", pid=pid, machine="", started="", version="0")


class TurnClock(Clock):
    """A clock that can do one turn of a reactor: calls that are made meanwhile come in the next one."""

    def turn(self) -> None:
        due = [call for call in self.calls if call.getTime() <= self.rightNow]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)


class Ears:
    """A ``hub.api.Receiver`` that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Event]] = []
        self.questions: list[bytes] = []
        self.reads = 0
        self.pressed_channels: list[str] = []
        self.missed_seconds: list[float] = []

    @property
    def words(self) -> list[bytes]:
        """The data of all publications, in order."""
        return [event.data for _, event in self.heard if isinstance(event, Publication)]

    def received(self, channel: str, event: Event) -> None:
        self.heard.append((channel, event))

    def asked(self, question: bytes) -> Deferred[bytes]:
        self.questions.append(question)
        return succeed(question[::-1])

    def read_done(self) -> None:
        self.reads += 1

    def pressed(self, channel: str) -> None:
        self.pressed_channels.append(channel)

    def missed(self, seconds: float) -> None:
        self.missed_seconds.append(seconds)


class FakeEdge:
    """A ``session.Edge`` that notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.address = "10.0.0.1"
        self.is_reading = True
        self.unfinished = b""
        """What has arrived without a line ending; handed to the session when it asks."""
        self.session: Session | None = None

    def pause_reading(self) -> None:
        assert self.is_reading, "paused twice"
        self.is_reading = False
        self.asked.append("pause")

    def resume_reading(self) -> None:
        assert not self.is_reading, "resumed twice"
        self.is_reading = True
        self.asked.append("resume")

    def flush(self) -> None:
        said, self.unfinished = self.unfinished, b""
        if said and self.session is not None:
            self.session.received([said])

    def cut(self) -> None:
        self.asked.append("cut")

    def finish(self, linger: bool) -> None:
        self.asked.append("finish, lingering" if linger else "finish")


class FakeTransport:
    """A TCP transport as an outbox sees it: its socket, and Twisted's buffer behind ``write``.

    :param room: bytes that the kernel takes; ``None`` is no limit. ``drain`` makes room again.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.sends: list[bytes] = []
        """What each direct ``send`` was given; also those of which nothing was taken."""
        self.taken = b""
        """All that the kernel took, in order."""
        self.buffer = b""
        self.is_broken = False
        self.is_aborted = False
        self._producer: Any = None

    def getHandle(self) -> FakeTransport:
        return self

    def send(self, data: bytes) -> int:
        self.sends.append(data)
        assert not self.buffer, "overtakes what waits in Twisted's buffer"
        if self.is_broken:
            raise ConnectionResetError
        taken = self._take(data)
        if data and not taken:
            raise BlockingIOError
        return taken

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.buffer += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self._producer is None and not streaming
        self._producer = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def abortConnection(self) -> None:
        self.is_aborted = True

    def drain(self, room: int | None = None) -> None:
        """The peer has read: there is so much room now."""
        self.room = room
        self.buffer = self.buffer[self._take(self.buffer) :]
        if not self.buffer and self._producer is not None:
            self._producer.resumeProducing()

    def lose(self) -> None:
        """The connection is gone; what Twisted does then."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def _take(self, data: bytes) -> int:
        taken = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= taken
        self.taken += bytes(data[:taken])
        return taken


class FakeMember:
    """Who is in a channel, with a real outbox on a fake transport."""

    def __init__(self, number: int, cork: Cork, codec: Codec = TEXT, room: int | None = None) -> None:
        self.number = number
        self.codec = codec
        self.client = f"client {number}"
        self.view: Hashable | None = None
        self.hears_joins = False
        self.breaks = 0
        self.transport = FakeTransport(room)
        self.outbox = Outbox(self.transport, cork, 1 << 20, lambda: None)

    @property
    def heard(self) -> bytes:
        return self.transport.taken

    def broken(self) -> None:
        self.breaks += 1


class FakeClient:
    """A session between a fake edge and a fake transport."""

    def __init__(self, number: int, loopback: Loopback, limit_bytes: int) -> None:
        self.edge = FakeEdge()
        self.transport = FakeTransport()
        self.overflows = 0
        outbox = Outbox(self.transport, loopback.cork, limit_bytes, self._overflowed)
        self.session = self.edge.session = Session(number, self.edge, outbox, loopback.shared)

    @property
    def heard(self) -> bytes:
        """All that the client has got."""
        return self.transport.taken

    @property
    def lines(self) -> list[str]:
        return self.transport.taken.decode().splitlines()

    def says(self, *messages: bytes) -> None:
        """The edge has framed these in one read."""
        self.session.received(list(messages))

    def _overflowed(self) -> None:
        self.overflows += 1


class Loopback:
    """All of a shard but its sockets, on a memory hub and a clock that stands still.

    :param text: settings of the text protocol that differ from a short greeting and the defaults.
    """

    def __init__(
        self,
        exchange: Exchange | None = None,
        incarnation: str = "00000000000000aa",
        now: Callable[[], float] = lambda: 0.0,
        **text: Any,
    ) -> None:
        self.clock = Clock()
        if exchange is not None:
            assert isinstance(exchange.clock, Clock)
            self.clock = exchange.clock
        self.exchange = exchange or Exchange(self.clock, publish_seconds=5.0)
        self.hub = MemoryHub(self.exchange, incarnation)
        self.counters = ShardCounters()
        self.cork = Cork(self.clock, now, 1.0)
        self.channels = Channels(self.hub, self.counters)
        self.pressure = Pressure(self.clock, self.hub, self.counters)
        self.fanout = Fanout(
            self.clock,
            now,
            hub=self.hub,
            channels=self.channels,
            cork=self.cork,
            pressure=self.pressure,
            counters=self.counters,
            answer=succeed,
            incarnation=bytes.fromhex(incarnation),
            slice_seconds=1.0,
            inbox_max_bytes=1 << 20,
        )
        self.shared = Surroundings(
            self.clock,
            self.hub,
            self.channels,
            self.pressure,
            self.counters,
            TextSettings(**{"greeting": "hi {number}", "goodbye": "bye {shard}", **text}),
            HubSettings(publish_seconds=5.0),
            Namespaces(ChannelSettings()),
        )
        self.hub.start(self.fanout)
        self._clients = 0

    def client(self, *, limit_bytes: int = 1 << 20) -> FakeClient:
        """A session that was opened; greeted after the next turn, if the hub is there."""
        self._clients += 1
        client = FakeClient(self._clients, self, limit_bytes)
        client.session.open()
        return client

    def turn(self, seconds: float = 0.0) -> None:
        """Let everything happen that is due, ``seconds`` from now."""
        self.clock.advance(seconds)


@dataclass
class HttpAnswer:
    """What came back from ``asked``."""

    status: int
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes


def asked(site: Site, request: bytes) -> HttpAnswer:
    """Send the bytes of a request to a site, in memory, through Twisted's real HTTP channel.

    :param site: on a clock that stands still.
    """
    protocol: Any = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(request)
    protocol.connectionLost(Failure(ConnectionDone()))
    head, _, body = transport.value().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return HttpAnswer(int(first.split()[1]), headers, body)
