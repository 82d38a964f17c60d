"""Hubs for tests, each with a receiver that remembers, and ways to wait for what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from spread.hub.address import parse_hub_address, parse_hub_addresses
from spread.hub.api import (
    PLAIN,
    Event,
    Format,
    History,
    Hub,
    HubCounters,
    Load,
    Position,
    Publication,
    PublishOptions,
    ShardIdentity,
)
from spread.hub.cluster import ClusterHub
from spread.hub.link import SubscriberProtocol
from spread.hub.process import this_process
from spread.hub.publish import JournalLimits
from spread.hub.reactor import Endpoint
from spread.hub.redis import RedisHub, RedisHubSettings
from spread.hub.several import SeveralHub
from spread.hub.topology import TlsFiles, endpoint_of, server_endpoints

__all__ = [
    "LOAD",
    "Recorder",
    "Shard",
    "cluster_shard",
    "deafened",
    "eventually",
    "pause",
    "reactor",
    "redis_shard",
    "several_shard",
]

reactor = cast(Any, global_reactor)

LOAD = Load(clients=3, channels=2, addresses={"text": "127.0.0.1:8007"}, ready=True)


def pause(seconds: float) -> Deferred[None]:
    """Let the reactor turn for a time: for what must *not* happen."""
    return deferLater(reactor, seconds, lambda: None)


async def eventually(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Ask each 5 ms until the condition is true; gives what it gave.

    :raises AssertionError: it has not become true in time.
    """
    deadline = reactor.seconds() + seconds
    while not (result := condition()):
        assert reactor.seconds() < deadline, f"not within {seconds:g} s: {what or condition}"
        await pause(0.005)
    return result


class Recorder:
    """A receiver that keeps what it is given."""

    def __init__(self) -> None:
        self.publications: list[tuple[str, Publication]] = []
        self.events: list[tuple[str, Event]] = []
        """All that came, the publications among it."""
        self.windows: list[float] = []
        """What ``missed`` was told."""
        self.presses: list[str] = []
        """The channels that ``pressed`` named."""
        self.reads = 0
        self.questions: list[bytes] = []
        """What ``asked`` was asked."""
        self.answer: Callable[[bytes], Deferred[bytes]] = lambda question: succeed(b"")

    def asked(self, question: bytes) -> Deferred[bytes]:
        self.questions.append(question)
        return self.answer(question)

    def received(self, channel: str, event: Event) -> None:
        self.events.append((channel, event))
        if isinstance(event, Publication):
            self.publications.append((channel, event))

    def read_done(self) -> None:
        self.reads += 1

    def pressed(self, channel: str) -> None:
        self.presses.append(channel)

    def missed(self, seconds: float) -> None:
        self.windows.append(seconds)

    def on(self, channel: str) -> list[bytes]:
        """The payloads of one channel, in the order they came."""
        return [publication.data for name, publication in self.publications if name == channel]

    def offsets(self, channel: str) -> list[int]:
        """The offsets of one channel's publications, in the order they came."""
        return [publication.offset for name, publication in self.publications if name == channel]


class Shard:
    """A hub and what it receives."""

    def __init__(self, hub: Hub, identity: ShardIdentity) -> None:
        self.hub = hub
        self.identity = identity
        self.receiver = Recorder()

    def publish(self, channel: str, data: bytes, session: int = 0, **options: Any) -> Deferred[Any]:
        """:param options: see ``api.PublishOptions``."""
        return self.hub.publish(
            channel, data, Format.TEXT, session, PublishOptions(**options) if options else PLAIN
        )

    async def follow(self, channel: str, history: History) -> Position:
        """Subscribe with a history."""
        position = await self.hub.subscribe(channel, history)
        assert position is not None
        return position

    async def hears(self, channel: str, data: list[bytes], seconds: float = 10.0) -> None:
        """Wait until exactly this has come on a channel.

        :raises AssertionError: something else came, or it did not come in time.
        """
        deadline = reactor.seconds() + seconds
        while len(heard := self.receiver.on(channel)) < len(data) and reactor.seconds() < deadline:
            await pause(0.005)
        assert heard == data, f"on {channel}: {_short(heard)} instead of {_short(data)}"


def redis_shard(
    url: str,
    *,
    tls: TlsFiles | None = None,
    endpoint: Endpoint | None = None,
    publish_seconds: float = 5.0,
    max_publications: int = 100_000,
    max_bytes: int = 32 << 20,
    min_replicas: int = 0,
    identity: ShardIdentity | None = None,
    **settings: Any,
) -> Shard:
    """A shard on a Redis hub, not started."""
    address = parse_hub_address(url)
    identity = identity or this_process("test")
    settings.setdefault("linger_seconds", 0.2)
    hub = RedisHub(
        reactor,
        address,
        endpoint or endpoint_of(reactor, address, tls or TlsFiles(), 3.0),
        identity.incarnation,
        RedisHubSettings(
            journal=JournalLimits(publish_seconds, max_publications, max_bytes, min_replicas), **settings
        ),
    )
    return Shard(hub, identity)


def several_shard(
    urls: Sequence[str],
    *,
    publish_seconds: float = 5.0,
    max_publications: int = 100_000,
    max_bytes: int = 32 << 20,
    identity: ShardIdentity | None = None,
    **settings: Any,
) -> Shard:
    """A shard on a hub of several servers, not started."""
    identity = identity or this_process("test")
    settings.setdefault("linger_seconds", 0.2)
    limits = JournalLimits(publish_seconds, max_publications, max_bytes)
    counters = HubCounters()
    hubs = [
        RedisHub(
            reactor,
            address,
            endpoint_of(reactor, address, TlsFiles(), 3.0),
            identity.incarnation,
            RedisHubSettings(journal=limits, **settings),
            counters=counters,
        )
        for address in parse_hub_addresses(" ".join(urls))
    ]
    return Shard(SeveralHub(reactor, hubs, counters), identity)


def cluster_shard(
    url: str,
    *,
    tls: TlsFiles | None = None,
    gate: Callable[[Endpoint], Endpoint] = lambda endpoint: endpoint,
    publish_seconds: float = 5.0,
    max_publications: int = 100_000,
    max_bytes: int = 32 << 20,
    identity: ShardIdentity | None = None,
    **settings: Any,
) -> Shard:
    """A shard on a cluster, not started.

    :param gate: what each connection goes through.
    """
    address = parse_hub_address(url)
    identity = identity or this_process("test")
    settings.setdefault("linger_seconds", 0.2)
    server = server_endpoints(reactor, address, tls or TlsFiles(), 3.0)
    hub = ClusterHub(
        reactor,
        address,
        lambda host, port: gate(server(host, port)),
        identity.incarnation,
        RedisHubSettings(journal=JournalLimits(publish_seconds, max_publications, max_bytes), **settings),
    )
    return Shard(hub, identity)


def deafened(shard: Shard) -> Callable[[], None]:
    """A shard on Redis hears no message of its channels until what this gives is called."""
    hub = shard.hub
    hubs = hub.hubs if isinstance(hub, SeveralHub) else [hub]
    before = []
    for each in hubs:
        assert isinstance(each, RedisHub)
        connection = each.server.hearing.protocol
        assert isinstance(connection, SubscriberProtocol)
        before.append((connection, connection.message))
        connection.message = lambda key, payload: None

    def again() -> None:
        for connection, hear in before:
            connection.message = hear

    return again


def _short(data: list[bytes]) -> str:
    shown = data if len(data) <= 12 else [*data[:6], b"...", *data[-6:]]
    return f"{len(data)} {[item[:40] for item in shown]}"
