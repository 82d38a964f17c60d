"""Shards in this process: real reactor, real loopback sockets, one memory exchange instead of Redis."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import count
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from spread.hub.api import ShardIdentity
from spread.hub.memory import Exchange, MemoryHub
from spread.node.hubs import OpenedHub
from spread.node.listen import bind
from spread.node.pressure import HOLD_SECONDS
from spread.node.settings import HubSettings, NodeSettings, Settings, TextSettings
from spread.node.shard import Shard
from tests.fakes import Ears

__all__ = ["ClusterCase", "Peer", "RunningShard", "is_clean", "reactor"]

reactor = cast(Any, global_reactor)
LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 10.0
"""After this time a test that waits has failed."""


class Peer(Protocol):
    """A client that keeps every byte it gets, and does with its connection what a test wants."""

    def __init__(self) -> None:
        self.heard = b""
        self.end: BaseException | None = None
        """Why the connection ended, when it has."""
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    # -- what it does --------------------------------------------------------------------------------------

    def says(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)

    def ends_saying(self) -> None:
        """``shutdown(SHUT_WR)``, when all that was said is sent."""
        cast(Any, self.transport).loseWriteConnection()

    def leaves(self) -> None:
        """``close()``, when all that was said is sent."""
        cast(Any, self.transport).loseConnection()

    def resets(self) -> None:
        """The connection ends with a reset."""
        cast(Any, self.transport).abortConnection()

    def stops_reading(self) -> None:
        cast(Any, self.transport).pauseProducing()

    def goes_on_reading(self) -> None:
        cast(Any, self.transport).resumeProducing()

    # -- what a test waits for -----------------------------------------------------------------------------

    def until(self, fact: Callable[[], bool]) -> Deferred[None]:
        """Fires when ``fact`` is true, looked at when something has come."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((fact, waiter))
        self._look()
        return waiter.addTimeout(PATIENCE_SECONDS, reactor, self._too_late)

    async def hears(self, expected: bytes) -> None:
        """Exactly this has come since the beginning, no byte more or less, within some seconds."""
        await self.until(lambda: len(self.heard) >= len(expected) or self.end is not None)
        assert self.heard == expected, f"heard {self.heard!r}, expected {expected!r} ({self.end})"

    async def ended(self) -> BaseException:
        """Why the connection ended."""
        await self.until(lambda: self.end is not None)
        assert self.end is not None
        return self.end

    # -- Twisted calls -------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end = reason.value
        self._look()

    def _look(self) -> None:
        for entry in [entry for entry in self._waiting if entry[0]()]:
            self._waiting.remove(entry)
            entry[1].callback(None)

    def _too_late(self, failure: Any, timeout: float) -> None:
        raise AssertionError(f"waited {timeout:g} s in vain; heard {self.heard[-2000:]!r}; end: {self.end}")


class RunningShard:
    """A shard that was started, and the hub it has."""

    def __init__(self, shard: Shard, hub: MemoryHub) -> None:
        self.shard = shard
        self.hub = hub
        self.ready_line = ""
        self.is_lost = False

    def lost(self) -> None:
        self.is_lost = True

    def port(self, service: str) -> int:
        """The port of ``text``, ``http`` or ``ops``."""
        fields = dict(field.partition("=")[::2] for field in self.ready_line.split()[1:])
        return int(fields[service].rpartition(":")[2])

    @property
    def counters(self) -> Any:
        return self.shard.counters


class ClusterCase(TestCase):
    """A test with an exchange, and all the shards and clients it wants; they are gone when it ends."""

    timeout = 60

    def setUp(self) -> None:
        self.exchange = Exchange(reactor, publish_seconds=5.0)
        self.shards: list[RunningShard] = []
        self.peers: list[Peer] = []
        self._incarnations = count(0xA0)

    async def tearDown(self) -> None:
        if self.exchange.is_cut:
            self.exchange.restore()
        for peer in self.peers:
            if peer.end is None:
                peer.resets()
        await gatherResults([running.shard.stop() for running in self.shards])
        await self.until(lambda: all(peer.end is not None for peer in self.peers))
        if any(running.counters.pressed for running in self.shards):
            await deferLater(reactor, HOLD_SECONDS * 3)  # the last period of a pressed channel

    def shard(
        self,
        number: int | None = None,
        *,
        node: dict[str, Any] | None = None,
        hub: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        file_limit: int = 1024,
        services: tuple[str, ...] = ("text",),
    ) -> RunningShard:
        """A shard that is not started; the arguments are settings that differ from those of these tests."""
        texts = {"greeting": "hi {number}", "goodbye": "bye {shard}", "idle_flush_seconds": 0.05}
        settings = Settings(
            node=NodeSettings(**{"ops": "off", "stop_seconds": 2.0, **(node or {})}),
            hub=HubSettings(url="memory:", **(hub or {})),
            text=TextSettings(**{**texts, **(text or {})}),
        )
        incarnation = f"{next(self._incarnations):016x}"
        memory = MemoryHub(self.exchange, incarnation)
        identity = ShardIdentity(
            incarnation=incarnation, host="here", pid=1, machine="", started="", version="0"
        )
        shard = Shard(
            reactor,
            settings,
            number=number,
            identity=identity,
            opened=OpenedHub(memory, lambda: succeed(None)),
            sockets={service: bind(LOOPBACK, 0) for service in services},
            is_inherited=False,
            file_limit=file_limit,
        )
        running = RunningShard(shard, memory)
        self.shards.append(running)
        return running

    async def start(self, number: int | None = None, **settings: Any) -> RunningShard:
        """A shard that takes clients."""
        running = self.shard(number, **settings)
        running.ready_line = await running.shard.start(running.lost)
        return running

    async def connect(self, running: RunningShard, service: str = "text", *, receive_bytes: int = 0) -> Peer:
        """A client of a shard.

        :param receive_bytes: what the kernel may take in for it, so that a client that does not read is
            noticed soon; 0 for the system's way.
        """
        peer = Peer()
        self.peers.append(peer)
        if not receive_bytes:
            endpoint = TCP4ClientEndpoint(reactor, LOOPBACK, running.port(service))
            await connectProtocol(endpoint, peer)
            return peer
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect((LOOPBACK, running.port(service)))
        sock.setblocking(False)
        factory: Any = _Once(peer)
        reactor.adoptStreamConnection(sock.fileno(), socket.AF_INET, factory)
        sock.close()
        return peer

    async def greeted(self, running: RunningShard, number: int, **how: Any) -> Peer:
        """A client that has got its greeting, as the client of this number."""
        peer = await self.connect(running, **how)
        await peer.hears(b"hi %d\n" % number)
        return peer

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for a fact that no event tells."""
        deadline = reactor.seconds() + PATIENCE_SECONDS
        while not fact():
            assert reactor.seconds() < deadline, "waited in vain"
            await deferLater(reactor, 0.002)

    def listen(self, *channels: str) -> Ears:
        """What another shard hears of these channels: whole messages, not just bytes."""
        ears = Ears()
        hub = MemoryHub(self.exchange, "00000000000000ee")
        hub.start(ears)
        self.addCleanup(hub.stop)
        for channel in channels:
            hub.subscribe(channel)
        return ears

    async def hear(self, ears: Ears, *words: bytes) -> None:
        """These messages have come, and no others."""
        await self.until(lambda: len(ears.heard) >= len(words))
        self.assertEqual(ears.words, list(words))


class _Once:
    """A factory of the one protocol it is given; what ``adoptStreamConnection`` asks for."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, address: object) -> Protocol:
        return self._protocol

    def doStart(self) -> None:
        pass

    def doStop(self) -> None:
        pass


def is_clean(end: BaseException) -> bool:
    """The connection ended with an end, not with a reset."""
    return isinstance(end, ConnectionDone)
