"""What surrounds the server API in its tests: namespaces, the clients of two shards, and their cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.hub.api import History, Load, ShardIdentity
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.reactor import Clock as AnyClock
from spread.node.api import Methods
from spread.node.api.methods import Namespaces
from spread.node.codes import Disconnect
from spread.node.control import Control, SubscribeOptions
from spread.node.metrics import ShardCounters
from spread.node.pattern import matching
from tests.fakes import Ears

KEPT = History(size=5, ttl_seconds=300, meta_ttl_seconds=3000)


@dataclass(frozen=True)
class FakeOptions:
    history: History | None = None
    presence: bool = False
    delta_publish: bool = False


class FakeNamespaces:
    """``room:`` keeps history and presence, ``delta:`` and ``large:`` are special; no others exist."""

    def __init__(self) -> None:
        self.known = {
            "": FakeOptions(),
            "room": FakeOptions(KEPT, presence=True),
            "delta": FakeOptions(delta_publish=True),
            "large": FakeOptions(History(size=100_000, ttl_seconds=300, meta_ttl_seconds=3000)),
        }

    def is_too_long(self, channel: str) -> bool:
        return len(channel.encode()) > 255

    def options(self, channel: str) -> FakeOptions | None:
        return self.known.get(channel.partition(":")[0] if ":" in channel else "")


@dataclass
class Connection:
    """A client, as far as the server API can touch it."""

    user: str
    client: str
    session: str = ""
    channels: set[str] = field(default_factory=set)
    heard: list[Any] = field(default_factory=list)


class FakeClients:
    """A ``control.Clients`` that does what it is told, and notes it."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.refuses: Exception | None = None
        """What subscribing fails with."""

    def add(self, user: str, client: str, *channels: str, session: str = "") -> Connection:
        connection = Connection(user, client, session or f"s-{client}", set(channels))
        self.connections.append(connection)
        return connection

    def _of(self, user: str, client: str, session: str) -> list[Connection]:
        return [
            one
            for one in self.connections
            if one.user == user and client in ("", one.client) and session in ("", one.session)
        ]

    def disconnect(
        self, user: str, *, client: str, session: str, whitelist: list[str], disconnect: Disconnect
    ) -> int:
        ended = [one for one in self._of(user, client, session) if one.client not in whitelist]
        for one in ended:
            one.heard.append(disconnect)
            self.connections.remove(one)
        return len(ended)

    def unsubscribe(self, user: str, channel: str, *, client: str, session: str) -> int:
        left = [one for one in self._of(user, client, session) if not channel or channel in one.channels]
        for one in left:
            one.channels -= {channel} if channel else set(one.channels)
        return len(left)

    def subscribe(
        self, user: str, channel: str, *, client: str, session: str, options: SubscribeOptions
    ) -> Deferred[int]:
        if self.refuses is not None:
            return Deferred.fromCoroutine(_failing(self.refuses))
        new = [one for one in self._of(user, client, session) if channel not in one.channels]
        for one in new:
            one.channels.add(channel)
            one.heard.append(options)
        return succeed(len(new))

    def refresh(
        self, user: str, *, client: str, session: str, expired: bool, expire_at: int, info: bytes
    ) -> int:
        found = self._of(user, client, session)
        for one in found:
            one.heard.append((expired, expire_at, info))
        return len(found)

    def channels(self, pattern: str) -> dict[str, int]:
        fits, counts = matching(pattern), dict[str, int]()
        for one in self.connections:
            for channel in one.channels:
                if fits(channel):
                    counts[channel] = counts.get(channel, 0) + 1
        return counts

    def emulate(self, session: str, data: bytes) -> bool:
        for one in self.connections:
            if one.session == session:
                one.heard.append(data)
                return True
        return False

    def send(self, user: str, client: str, data: bytes) -> int:
        return self._heard(
            [one for one in self.connections if client == one.client or (not client and one.user == user)],
            data,
        )

    def send_all(self, data: bytes) -> int:
        return self._heard(self.connections, data)

    def _heard(self, connections: list[Connection], data: bytes) -> int:
        for one in connections:
            one.heard.append(data)
        return len(connections)


async def _failing(error: Exception) -> int:
    raise error


class Shard(Ears):
    """One shard: a memory hub, its clients, and the server API before them."""

    def __init__(self, exchange: Exchange, number: int, namespaces: Namespaces) -> None:
        super().__init__()
        self.incarnation = f"{number + 0xA0:016x}"
        self.hub = MemoryHub(exchange, self.incarnation)
        self.clients = FakeClients()
        self.control = Control(self.hub, self.clients, self.incarnation)
        self.counters = ShardCounters()
        self.methods = Methods(self.hub, self.control, namespaces, self.counters)
        self.hub.start(self)
        identity = ShardIdentity(
            incarnation=self.incarnation, host="here", pid=number + 1, machine="", started="", version="0.1"
        )
        self.hub.claim(number, identity)
        self.hub.enter(self._load, lambda incumbent: None)

    def asked(self, question: bytes) -> Deferred[bytes]:
        return self.control.answer(question)

    def _load(self) -> Load:
        there = self.clients.connections
        return Load(
            clients=len(there),
            channels=len({channel for one in there for channel in one.channels}),
            addresses={},
            ready=True,
            users=len({one.user for one in there}),
            subscriptions=sum(len(one.channels) for one in there),
            uptime_seconds=7,
        )


class Cluster:
    """Two shards that share an exchange."""

    def __init__(self, clock: AnyClock | None = None, namespaces: Namespaces | None = None) -> None:
        self.clock = Clock()
        self.exchange = Exchange(clock or self.clock, publish_seconds=5.0)
        self.first, self.second = (
            Shard(self.exchange, number, namespaces or FakeNamespaces()) for number in (0, 1)
        )

    def stop(self) -> None:
        self.first.hub.stop()
        self.second.hub.stop()

    def outcome(self, waiting: Deferred[Any]) -> Any:
        """What a Deferred fires with within ten seconds; a failure is raised."""
        fired: list[Any] = []
        waiting.addBoth(fired.append)
        for _ in range(100):
            if fired:
                break
            self.clock.advance(0.1)
        [result] = fired
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def call(self, method: str, arguments: Any = None, *, shard: Shard | None = None) -> Any:
        """The result of a method; ``arguments`` are bytes, or what becomes JSON."""
        text = arguments if isinstance(arguments, bytes) else msgspec.json.encode(arguments)
        return msgspec.json.decode(self.outcome((shard or self.first).methods.call(method, text)))
