"""Clients of the Centrifuge protocol without sockets: sessions between a fake edge and a fake transport, on
memory hubs that share one exchange, so that several shards are at hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from spread.hub.memory import Exchange, MemoryHub
from spread.node import codes
from spread.node.auth.keys import TokenKeys, sign
from spread.node.auth.tokens import ConnectionToken, SubscriptionToken, TokenVerifier
from spread.node.channels import Channels
from spread.node.clients import Clients
from spread.node.codec import Codec
from spread.node.control import Control
from spread.node.cork import Cork
from spread.node.encoders import codec_of
from spread.node.fanout import Fanout
from spread.node.limits import Admission
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.outbox import Outbox
from spread.node.pressure import Pressure
from spread.node.session.contract import Visit
from spread.node.session.shared import Shared
from spread.node.settings import ChannelSettings, ClientSettings, Namespace, NamespaceOptions
from spread.node.wheel import Wheel
from spread.node.wire.framing import line
from tests.fakes import FakeTransport

__all__ = ["NOW", "OPEN", "SECRET", "City", "FakeTokens", "Person", "namespaces", "token"]

NOW = 1_700_000_000.0
"""The time of day when a city's clock stands at 0."""

SECRET = "a secret of the tests"

LINES = codec_of("lines", "json", line, lambda messages: b"".join(map(line, messages)))

OPEN = NamespaceOptions(
    presence=True,
    join_leave=True,
    history_size=10,
    history_ttl=300.0,
    allow_subscribe_for_client=True,
    allow_subscribe_for_anonymous=True,
    allow_publish_for_client=True,
    allow_publish_for_anonymous=True,
    allow_presence_for_client=True,
    allow_presence_for_anonymous=True,
    allow_history_for_client=True,
    allow_history_for_anonymous=True,
)
"""Channels in which anybody may do anything."""


def namespaces(without: NamespaceOptions = OPEN, **named: dict[str, Any]) -> ChannelSettings:
    """Settings of channels; ``named`` are namespaces and their options."""
    return ChannelSettings(
        without_namespace=without,
        namespaces=tuple(Namespace(name=name, **options) for name, options in named.items()),
    )


def token(**claims: Any) -> str:
    """A token signed with the secret of the tests."""
    return sign(claims, SECRET)


class FakeTokens:
    """Real verification at the time of a city; ``hold`` makes it take until ``release``."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._verifier = TokenVerifier(TokenKeys(hmac_secret=SECRET))
        self._now = now
        self.is_held = False
        self.error: Exception | None = None
        self._waiting: list[tuple[Deferred[Any], Callable[[], Any]]] = []

    def verify_connection(self, token: str) -> Deferred[ConnectionToken]:
        return self._verified(lambda: self._verifier.verify_connection(token, self._now()))

    def verify_subscription(self, token: str) -> Deferred[SubscriptionToken]:
        return self._verified(lambda: self._verifier.verify_subscription(token, self._now()))

    def _verified(self, verify: Callable[[], Any]) -> Deferred[Any]:
        if self.error is not None:
            error = self.error

            def fail() -> Any:
                raise error

            return maybeDeferred(fail)
        if not self.is_held:
            return maybeDeferred(verify)
        waiting: Deferred[Any] = Deferred(lambda _: None)
        self._waiting.append((waiting, verify))
        return waiting

    def release(self) -> None:
        """Let all verifications that are held come to their end."""
        self.is_held = False
        waiting, self._waiting = self._waiting, []
        for one, verify in waiting:
            if not one.called:
                maybeDeferred(verify).chainDeferred(one)


class City:
    """Shards on one exchange and one clock.

    :param client: settings of the section ``client`` that are not the defaults.
    """

    def __init__(
        self, channels: ChannelSettings | None = None, shards: int = 1, has_keys: bool = True, **client: Any
    ) -> None:
        self.clock = Clock()
        self.exchange = Exchange(self.clock, publish_seconds=5.0)
        self.tokens = FakeTokens(self.now)
        client.setdefault("allow_anonymous_connect_without_token", True)
        self.settings = ClientSettings(**client)
        personal = self.settings.subscribe_to_user_personal_channel.personal_channel_namespace
        self.namespaces = Namespaces(channels or namespaces(), personal)
        self.shards = [self._shard(number, has_keys) for number in range(shards)]
        self.clock.advance(0)

    def _shard(self, number: int, has_keys: bool) -> FakeShard:
        return FakeShard(self, f"{number + 1:016x}", has_keys)

    def now(self) -> float:
        """Seconds since 1970."""
        return NOW + self.clock.seconds()

    def turn(self, seconds: float = 0.0) -> None:
        """Let everything happen that is due, ``seconds`` from now."""
        # In steps: what is done at the end of a long time must not have happened at its beginning.
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(0.25, end - self.clock.seconds()))
        for _ in range(20):
            self.clock.advance(0)

    def person(self, shard: int = 0, **options: Any) -> Person:
        """Someone whose connection is open, and who has said nothing yet."""
        return Person(self.shards[shard], **options)

    def guest(self, shard: int = 0, **connect: Any) -> Person:
        """Someone who has connected."""
        person = self.person(shard)
        person.says({"id": 1, "connect": connect})
        self.turn()
        replies = person.told
        assert "connect" in replies[0], (replies, person.closed)
        person.client = replies[0]["connect"]["client"]
        person.greeting = replies[0]["connect"]
        return person


class FakeShard:
    """All of a shard but its sockets."""

    def __init__(self, city: City, incarnation: str, has_keys: bool) -> None:
        clock = city.clock
        self.city = city
        self.hub = MemoryHub(city.exchange, incarnation)
        self.counters = ShardCounters()
        self.cork = Cork(clock, lambda: 0.0, 1.0)
        self.channels = Channels(self.hub, self.counters)
        self.pressure = Pressure(clock, self.hub, self.counters)
        self.wheel = Wheel(clock)
        self.clients = Clients(
            clock, Admission(0, 0), self.cork, itertools.count(1), city.settings.queue_max_size
        )
        self.control = Control(self.hub, self.clients)
        self.shared = Shared(
            clock=clock,
            now=city.now,
            random=lambda: 0.5,
            hub=self.hub,
            channels=self.channels,
            pressure=self.pressure,
            counters=self.counters,
            wheel=self.wheel,
            registry=self.clients,
            client=city.settings,
            namespaces=city.namespaces,
            tokens=city.tokens if has_keys else None,
            subscription_tokens=city.tokens if has_keys else None,
            node=incarnation,
            version="spread test",
            hub_seconds=5.0,
        )
        self.clients.shared = self.shared
        self.clients.control = self.control
        self.fanout = Fanout(
            clock,
            lambda: 0.0,
            hub=self.hub,
            channels=self.channels,
            cork=self.cork,
            pressure=self.pressure,
            counters=self.counters,
            answer=self.control.answer,
            incarnation=bytes.fromhex(incarnation),
            slice_seconds=1.0,
            inbox_max_bytes=1 << 20,
        )
        self.hub.start(self.fanout)


class Person:
    """One client, and the edge between it and its session."""

    def __init__(
        self,
        shard: FakeShard,
        codec: Codec = LINES,
        room: int | None = None,
        limit_bytes: int = 1 << 20,
        **visit: Any,
    ) -> None:
        self.shard = shard
        self.client = ""
        self.greeting: dict[str, Any] = {}
        self.is_reading = True
        self.is_cut = False
        self.closed: tuple[int, str] | None = None
        self.transport = FakeTransport(room)
        outbox = Outbox(self.transport, shard.cork, limit_bytes, self._overflowed)
        arrived = {"transport": "json", "address": "10.0.0.1", **visit}
        refused = shard.clients.admit(arrived["address"])
        assert not refused, refused
        self.session = shard.clients.open(self, outbox, codec, Visit(**arrived))
        self._seen = 0
        self._kept: list[dict[str, Any]] = []

    def _overflowed(self) -> None:
        self.session.end(codes.SLOW)

    # -- contract.Edge

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self, disconnect: codes.Disconnect) -> None:
        assert self.closed is None, "closed twice"
        self.session.outbox.flush()
        self.closed = (disconnect.code, disconnect.reason)

    def cut(self) -> None:
        self.is_cut = True

    # -- what it does

    def says(self, *commands: dict[str, Any] | bytes) -> None:
        """Send commands in one frame."""
        lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in commands]
        self.session.received(b"\n".join(lines))

    def asks(self, **method: Any) -> dict[str, Any]:
        """Send one command, let everything happen; the reply to it. What else comes stays in ``told``."""
        self.says({"id": 77, **method})
        self.shard.city.turn()
        told = self.told
        replies = [reply for reply in told if reply.get("id") == 77]
        assert len(replies) == 1, (told, self.closed)
        self._kept = [reply for reply in told if reply.get("id") != 77]
        return replies[0]

    def subscribes(self, channel: str, **request: Any) -> dict[str, Any]:
        """Subscribe; the reply's result."""
        reply = self.asks(subscribe={"channel": channel, **request})
        assert "subscribe" in reply, reply
        result: dict[str, Any] = reply["subscribe"]
        return result

    def leaves(self) -> None:
        """The connection is lost."""
        self.session.lost()

    # -- what it hears

    @property
    def told(self) -> list[dict[str, Any]]:
        """What has come since this was last asked."""
        self.session.outbox.flush()
        new = self.transport.taken[self._seen :]
        self._seen = len(self.transport.taken)
        assert new == b"" or new.endswith(b"\n")
        kept, self._kept = self._kept, []
        return kept + [json.loads(one) for one in new.splitlines()]

    @property
    def pushes(self) -> list[dict[str, Any]]:
        """The pushes among what has come since this was last asked."""
        return [reply["push"] for reply in self.told if "push" in reply]

    @property
    def heard(self) -> list[Any]:
        """The data of the publications among that."""
        return [push["pub"]["data"] for push in self.pushes if "pub" in push]
