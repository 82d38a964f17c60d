"""Two shards in memory, with all that serves clients of the Centrifuge protocol, on a clock that stands
still; and witnesses: well-behaved clients that must notice nothing of what others send."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import count
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from spread.hub.api import Load
from spread.hub.memory import Exchange, MemoryHub
from spread.node.channels import Channels
from spread.node.codec import Codec
from spread.node.codes import SLOW, Disconnect
from spread.node.cork import Cork
from spread.node.edge.codecs import JSON_LINES
from spread.node.encoders import codec_of
from spread.node.fanout import Fanout
from spread.node.gateway import Gateway
from spread.node.limits import Admission
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.outbox import Outbox
from spread.node.pressure import Pressure
from spread.node.session.contract import Visit
from spread.node.wire import client_json, client_protobuf
from spread.node.wire import json as wire_json
from spread.node.wire.delta import apply
from spread.node.wire.messages import (
    Command,
    ConnectRequest,
    Error,
    ProtocolError,
    Publication,
    PublishRequest,
    Push,
    Reply,
    Request,
    SubscribeRequest,
    Unsubscribe,
)
from tests.fakes import identity
from tests.fuzz import corpus
from tests.fuzz.wires import Wire

__all__ = ["PROTOBUF", "Caller", "Faults", "Town", "replies_of"]

PING_SECONDS = 25.0

PROTOBUF = codec_of("bare", "protobuf", lambda message: message, b"".join)
"""Messages one behind the other."""

_ADDRESS = IPv4Address("TCP", "192.0.2.9", 1)


def replies_of(is_protobuf: bool, data: bytes) -> list[Reply]:
    """What a client got.

    :raises ProtocolError: it is not what the protocol has.
    """
    if is_protobuf:
        return client_protobuf.decode_replies(data)
    return client_json.decode_replies(data)


class Faults(logging.Handler):
    """What is logged as a fault while it is entered: by us, by Twisted (also of a Deferred that nobody looks
    at), and by what uses Python's own logging."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def __enter__(self) -> Faults:
        globalLogPublisher.addObserver(cast(Any, self._observe))
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(cast(Any, self._observe))
        logging.getLogger().removeHandler(self)

    def _observe(self, event: LogEvent) -> None:
        level = event.get("log_level")
        if "log_failure" in event or level in (LogLevel.error, LogLevel.critical):
            failure = event.get("log_failure")
            text = failure.getTraceback() if failure is not None else str(event.get("log_format"))
            self.found.append(f"{event.get('log_namespace')}: {text}")

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        self.found.append(f"{record.name}: {self.format(record)}")

    def take(self) -> list[str]:
        """What was logged since this was last asked."""
        found, self.found = self.found, []
        return found


class Shard:
    """All of a shard but its ports."""

    def __init__(self, town: Town, number: int, incarnation: str) -> None:
        clock = town.clock
        self.town = town
        self.hub = MemoryHub(town.exchange, incarnation)
        self.counters = ShardCounters()
        self.cork = Cork(clock, lambda: 0.0, 1.0)
        self.channels = Channels(self.hub, self.counters)
        self.admission = Admission(0, 0)
        pressure = Pressure(clock, self.hub, self.counters)
        settings = town.settings
        personal = settings.client.subscribe_to_user_personal_channel
        self.gateway = Gateway(
            clock,
            settings,
            hub=self.hub,
            channels=self.channels,
            namespaces=Namespaces(settings.channel, personal.personal_channel_namespace),
            pressure=pressure,
            counters=self.counters,
            cork=self.cork,
            admission=self.admission,
            numbers=count(1),
            incarnation=incarnation,
            version="fuzzed",
            number=lambda: 0,
        )
        self.fanout = Fanout(
            clock,
            lambda: 0.0,
            hub=self.hub,
            channels=self.channels,
            cork=self.cork,
            pressure=pressure,
            counters=self.counters,
            answer=self.gateway.control.answer,
            incarnation=bytes.fromhex(incarnation),
            slice_seconds=1.0,
            inbox_max_bytes=1 << 20,
        )
        self.hub.start(self.fanout)
        self.hub.claim(number, identity(incarnation, number + 1))
        self.hub.enter(self._load, lambda incumbent: None)
        self.site: Any = self.gateway.site()
        self.lines: Any = self.gateway.json_factory()

    def _load(self) -> Load:
        return Load(clients=self.counters.clients, channels=len(self.channels), addresses={}, ready=True)

    def http(self, room: int | None = None, hears_after_end: bool = False) -> Wire:
        """A connection to the HTTP port."""
        return self._connected(self.site, room, hears_after_end)

    def json(self, room: int | None = None) -> Wire:
        """A connection to the port for JSON lines."""
        return self._connected(self.lines, room)

    def _connected(self, factory: Any, room: int | None, hears_after_end: bool = False) -> Wire:
        wire = Wire(self.town.clock, room, hears_after_end)
        wire.connect(factory.buildProtocol(_ADDRESS))
        return wire


class Caller:
    """A session without an edge: frames are handed to it as they are."""

    def __init__(self, shard: Shard, codec: Codec, room: int | None = None) -> None:
        clients = shard.gateway.clients
        self.shard = shard
        self.is_protobuf = codec.protocol == "protobuf"
        self.wire = Wire(shard.town.clock, room)
        self.wire.protocol = self
        self.is_reading = True
        self.closed: Disconnect | None = None
        refused = clients.admit("192.0.2.9")
        assert not refused, refused
        outbox = Outbox(self.wire, shard.cork, clients.outbox_max_bytes, self._overflowed)
        visit = Visit(transport="json", address="192.0.2.9")
        self.session = clients.open(self, outbox, codec, visit)

    def say(self, frame: bytes) -> bool:
        """Hand over a frame, or several messages; False: nobody reads it."""
        if not self.is_reading or self.closed is not None or not self.wire.connected:
            return False
        self.session.received(frame)
        return True

    def ask(self, *commands: Command) -> None:
        """The same with good commands."""
        encode = client_protobuf.encode_command if self.is_protobuf else client_json.encode_command
        assert self.say((b"" if self.is_protobuf else b"\n").join(map(encode, commands)))

    def replies(self) -> list[Reply]:
        """What it has got since this was last asked."""
        data = self.wire.take()
        return replies_of(self.is_protobuf, data) if data else []

    def _overflowed(self) -> None:
        self.session.end(SLOW)

    # -- contract.Edge, and what a transport calls

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self, disconnect: Disconnect) -> None:
        assert self.closed is None, "closed twice"
        self.closed = disconnect
        self.session.outbox.close(self.wire.loseConnection)

    def cut(self) -> None:
        self.wire.abortConnection()

    def connectionLost(self, reason: object) -> None:
        self.session.outbox.abandon()
        self.session.lost()


class Witness:
    """A client that does all as it should, and must get all that it should."""

    CHANNEL = "witness:box"
    """Where witnesses speak to each other."""
    DELTA = "delta:a"
    PUBLIC = ("room", "stream:a", "newest:a", "plain:a", "binary:a", "object:a", DELTA)
    """Where they hear what others say."""

    def __init__(self, shard: Shard, codec: Codec) -> None:
        self.caller = Caller(shard, codec)
        self.town = shard.town
        self.heard: list[bytes] = []
        self.pings = 0
        self.publications = 0
        """Of others."""
        self.deltas: dict[tuple[str, int], bytes] = {}
        """The publications in ``DELTA`` since the last check, put together, by their epochs and offsets."""
        self._base = b""
        self._pinged_at = self.town.clock.seconds()
        self._last_id = 1
        self._subscribing: dict[int, str] = {}
        self.caller.ask(Command(1, ConnectRequest(token=corpus.token(sub="witness"))))
        for channel in (self.CHANNEL, *self.PUBLIC):
            self._subscribe(channel)

    def _subscribe(self, channel: str) -> None:
        delta = "fossil" if channel == self.DELTA else ""
        self._ask(SubscribeRequest(channel=channel, delta=delta, join_leave=True))
        self._subscribing[self._last_id] = channel

    def publish(self, data: bytes) -> None:
        """Say something."""
        self._ask(PublishRequest(self.CHANNEL, data))

    def _ask(self, request: Request) -> None:
        self._last_id += 1
        self.caller.ask(Command(self._last_id, request))

    def listen(self) -> None:
        """Take what came; answer a ping."""
        if self.caller.wire.heard:
            for reply in self.caller.replies():
                body = reply.body
                if body is None:
                    self.pings += 1
                    self._pinged_at = self.town.clock.seconds()
                    self.caller.ask(Command())
                elif isinstance(body, Push):
                    self._pushed(body)
                elif isinstance(body, Error):
                    # The hub was away: what is asked for then is asked for again, as SDKs do.
                    assert body.code == 100 and self.town.was_cut, f"a witness got {body}"
                    self._subscribe(self._subscribing.pop(reply.id))
                else:
                    self._subscribing.pop(reply.id, None)
        assert self.caller.closed is None, f"a witness was closed: {self.caller.closed}"
        late = self.town.clock.seconds() - self._pinged_at
        assert late < PING_SECONDS + 1, f"a witness got no ping for {late} s"

    def _pushed(self, push: Push) -> None:
        event = push.event
        if isinstance(event, Unsubscribe):
            assert event.code >= 2500, event
            self._subscribe(push.channel)
        elif isinstance(event, Publication):
            if push.channel == self.CHANNEL:
                self.heard.append(event.data)
                return
            self.publications += 1
            if push.channel == self.DELTA:
                data = event.data if self.caller.is_protobuf else json.loads(event.data).encode()
                self._base = apply(self._base, data, 1 << 20) if event.delta else data
                kept = self.town.exchange.streams._kept.get(self.DELTA)
                self.deltas["" if kept is None else kept.epoch, event.offset] = self._base


def _is_same(of_json: bytes, of_protobuf: bytes) -> bool:
    try:
        return wire_json.embeddable(of_protobuf) == of_json
    except ProtocolError:
        return False


class Town:
    """Two shards on one exchange and one clock, and a witness on each."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.settings = corpus.settings(PING_SECONDS)
        self.exchange = Exchange(self.clock, publish_seconds=5.0)
        self.was_cut = False
        """The hub is away, or was a moment ago."""
        self.shards = [Shard(self, number, node) for number, node in enumerate(corpus.NODES)]
        self.turn()
        self.witnesses = [Witness(self.shards[0], JSON_LINES), Witness(self.shards[1], PROTOBUF)]
        self._checks = 0
        self.check()
        self._beginning = self._left()

    def turn(self, seconds: float = 0.0) -> None:
        """Let everything happen that is due, ``seconds`` from now."""
        end = self.clock.seconds() + seconds
        while True:
            step = min(0.5, end - self.clock.seconds())
            self.clock.advance(max(0.0, step))
            self._settle_turn()
            for witness in getattr(self, "witnesses", ()):
                witness.listen()
            if self.clock.seconds() >= end - 1e-9:
                return

    def _settle_turn(self) -> None:
        for _ in range(1000):
            calls = self.clock.calls
            if not calls or calls[0].getTime() > self.clock.seconds():
                return
            self.clock.advance(0)
        raise AssertionError(f"never quiet: {self.clock.calls[0]}")

    def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Let time pass until something holds; False: it does not within the time."""
        end = self.clock.seconds() + seconds
        while not condition():
            if self.clock.seconds() >= end:
                return False
            self.turn(0.25)
        return True

    def check(self) -> None:
        """The witnesses hear each other, nothing else, and are pinged."""
        for speaker in self.witnesses:
            self._checks += 1
            word = b'{"word":%d}' % self._checks
            speaker.publish(word)
            self.turn()
            for witness in self.witnesses:
                assert witness.heard == [word], f"witnesses heard {witness.heard!r} instead of {word!r}"
                witness.heard.clear()
        of_json, of_protobuf = (witness.deltas for witness in self.witnesses)
        for place in of_json.keys() & of_protobuf.keys():
            ours, theirs = of_json[place], of_protobuf[place]
            assert _is_same(ours, theirs), f"at {place}: {ours!r} and {theirs!r}"
        of_json.clear()
        of_protobuf.clear()

    def rest(self) -> None:
        """Let all that is kept for a time run out; nothing but the witnesses may be left."""
        self.turn(400.0)
        left = self._left()
        assert left == self._beginning, f"left behind: {left} instead of {self._beginning}"
        assert len(self.clock.calls) < 20, f"{len(self.clock.calls)} timers"
        self.check()

    def _left(self) -> dict[str, list[int]]:
        """How much there is of what comes and goes with clients, on each shard."""
        gateways = [shard.gateway.clients for shard in self.shards]
        return {
            "sessions": [len(each.sessions) for each in gateways],
            "users": [each.users for each in gateways],
            "clients counted": [shard.counters.clients for shard in self.shards],
            "clients admitted": [shard.admission.clients for shard in self.shards],
            "subscriptions": [shard.counters.subscriptions for shard in self.shards],
            "channels": [len(shard.channels) for shard in self.shards],
            "channels with presence": [len(self.exchange.presence)],
        }

    def stop(self) -> None:
        """No more of it."""
        for shard in self.shards:
            shard.gateway.stop()
            shard.hub.stop()
