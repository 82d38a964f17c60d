"""Which channels this shard hears on one Redis server, and what it hears on them.

A channel's subscription:

    WANTED      asked for; waits for its batch (or for the link)
    ASKED       its SUBSCRIBE is on the connection
    LIVE        confirmed: every later publication is heard
    LINGERING   live, but the last local member has left; dropped after ``linger_seconds``

    WANTED → ASKED → LIVE ⇄ LINGERING → (gone, UNSUBSCRIBE)
    any, when the link goes down → WANTED, except LINGERING → (gone)

One batch is on the connection at a time: at most ``BATCH`` channels in one command, the next when all of
it is confirmed. So 10,000 channels joined in one turn are 20 commands, a re-subscription that follows an
UNSUBSCRIBE of the same channel cannot be confirmed by the wrong reply, and Redis' query buffer stays
small. After a reconnect all are asked for again; when the last is confirmed the window in which plain
channels may have lost something is told to the receiver.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from spread.hub.api import HubCounters, Receiver
from spread.hub.envelope import KIND_PUBLICATION, MalformedEnvelope, UnknownVersion, unpack
from spread.hub.errors import HubRefused, ReplyError
from spread.hub.link import SubscriberProtocol
from spread.hub.reactor import Clock, Timer

__all__ = ["BATCH", "Subscriptions"]

BATCH = 512
"""Channels in one SUBSCRIBE or UNSUBSCRIBE."""

MAX_ORIGINS = 4096
"""Shards whose last sequence is remembered; the least recently heard are forgotten first."""


class _State(Enum):
    WANTED = "wanted"
    ASKED = "asked"
    LIVE = "live"
    LINGERING = "lingering"


class _Subscription:
    __slots__ = ("channel", "key", "linger_until", "state", "waiters")

    def __init__(self, channel: str, key: bytes) -> None:
        self.channel = channel
        self.key = key
        self.state = _State.WANTED
        self.linger_until = 0.0
        self.waiters: list[Deferred[None]] = []


class Subscriptions:
    """The subscriber side of one link.

    :param prefix: what stands before a channel's name in Redis, and ``}`` after it.
    :param reply_seconds: a batch that is not confirmed within this time cuts the connection.
    """

    log = Logger("spread.hub.subscribe")

    def __init__(
        self,
        clock: Clock,
        hub: str,
        *,
        prefix: bytes,
        linger_seconds: float,
        reply_seconds: float,
        receiver: Receiver,
        counters: HubCounters,
    ) -> None:
        self._clock = clock
        self._hub = hub
        self._prefix = prefix
        self._linger_seconds = linger_seconds
        self._reply_seconds = reply_seconds
        self._receiver = receiver
        self._counters = counters
        self._connection: SubscriberProtocol | None = None
        self._by_key: dict[bytes, _Subscription] = {}
        self._wanted: deque[_Subscription] = deque()
        self._unwanted: deque[bytes] = deque()
        self._lingering: deque[_Subscription] = deque()
        self._in_flight: set[bytes] = set()
        self._flight_deadline: Timer | None = None
        self._turn: Timer | None = None
        self._linger_timer: Timer | None = None
        self._last_sequence: dict[bytes, int] = {}
        self._down_since: float | None = None
        self._restoring = 0
        # Counted, and told at most once a minute each: a foreign release may publish thousands a second.
        self._told_at: dict[str, float] = {}

    @property
    def is_live(self) -> bool:
        """The link is up and all that was subscribed before it broke is subscribed again."""
        return self._connection is not None and not self._restoring

    def subscribe(self, channel: str) -> Deferred[None]:
        """See ``Hub.subscribe``."""
        key = self._prefix + channel.encode() + b"}"
        subscription = self._by_key.get(key)
        if subscription is None:
            subscription = self._by_key[key] = _Subscription(channel, key)
            self._counters.subscribed_channels = len(self._by_key)
            self._wanted.append(subscription)
            self._soon()
        elif subscription.state is _State.LINGERING:
            subscription.state = _State.LIVE
        if subscription.state is _State.LIVE:
            return succeed(None)
        waiter: Deferred[None] = Deferred(subscription.waiters.remove)
        subscription.waiters.append(waiter)
        return waiter

    def unsubscribe(self, channel: str) -> None:
        """See ``Hub.unsubscribe``."""
        subscription = self._by_key.get(self._prefix + channel.encode() + b"}")
        if subscription is None:
            return
        # Also when it is not live yet: by then it may be, or it goes with the expiry after that.
        subscription.linger_until = self._clock.seconds() + self._linger_seconds
        if subscription.state is _State.LIVE:
            subscription.state = _State.LINGERING
        self._lingering.append(subscription)
        if self._linger_timer is None:
            self._linger_timer = self._clock.callLater(self._linger_seconds, self._drop_lingering)

    # -- the link ------------------------------------------------------------------------------------

    def link_up(self, connection: SubscriberProtocol) -> None:
        """A connection is ready: subscribe everything on it."""
        self._connection = connection
        connection.message = self.message
        connection.read_done = self._receiver.read_done
        connection.confirmed = self._confirmed
        connection.refused = self._refused
        self._restoring = len(self._wanted) if self._down_since is not None else 0
        if self._down_since is not None and not self._restoring:
            self._restored()
        self._next_batch()

    def link_down(self) -> None:
        """The connection is gone; nothing is heard until the next one."""
        self._connection = None
        if self._down_since is None:
            self._down_since = self._clock.seconds()
        self._end_flight()
        self._unwanted.clear()
        self._wanted.clear()
        for key, subscription in list(self._by_key.items()):
            if subscription.state is _State.LINGERING:
                del self._by_key[key]
            else:
                subscription.state = _State.WANTED
                self._wanted.append(subscription)
        self._counters.subscribed_channels = len(self._by_key)

    def stop(self) -> None:
        """Cancel timers. Who waits for a subscription is left to its own deadline. Idempotent."""
        for timer in (self._turn, self._linger_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._turn = self._linger_timer = None
        self._end_flight()
        self._connection = None

    # -- what is heard: the message path ---------------------------------------------------------------

    def message(self, key: bytes, payload: bytes) -> None:
        """One message of a subscribed channel; called for each, so nothing here logs or allocates twice."""
        subscription = self._by_key.get(key)
        if subscription is None:
            return  # unsubscribed, and the last messages were on their way
        try:
            kind, sequence, publication = unpack(payload)
        except MalformedEnvelope as error:
            self._odd(subscription.channel, error)
            return
        if kind != KIND_PUBLICATION:
            self._odd(subscription.channel, MalformedEnvelope(f"kind {kind}"))
            return
        shard = publication.shard
        last = self._last_sequence
        if sequence <= last.get(shard, 0):
            self._counters.duplicates += 1
            return
        if shard not in last and len(last) >= MAX_ORIGINS:
            for forgotten in list(last)[: MAX_ORIGINS // 2]:
                del last[forgotten]
        last[shard] = sequence
        self._counters.received += 1
        self._receiver.received(subscription.channel, publication)

    def _odd(self, channel: str, error: MalformedEnvelope) -> None:
        if isinstance(error, UnknownVersion):
            self._counters.unknown_versions += 1
        else:
            self._counters.malformed += 1
        kind = type(error).__name__
        now = self._clock.seconds()
        if now - self._told_at.get(kind, -3600.0) >= 60.0:
            self._told_at[kind] = now
            self.log.warn("dropped a message on channel {channel}: {error}", channel=channel, error=error)

    # -- batches -------------------------------------------------------------------------------------

    def _soon(self) -> None:
        if self._turn is None and self._connection is not None and not self._in_flight:
            self._turn = self._clock.callLater(0, self._next_batch)

    def _next_batch(self) -> None:
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None
        connection = self._connection
        if connection is None or self._in_flight:
            return
        if self._unwanted:
            batch = [self._unwanted.popleft() for _ in range(min(BATCH, len(self._unwanted)))]
            command = b"UNSUBSCRIBE"
        elif self._wanted:
            asked = [self._wanted.popleft() for _ in range(min(BATCH, len(self._wanted)))]
            for subscription in asked:
                subscription.state = _State.ASKED
            batch = [subscription.key for subscription in asked]
            command = b"SUBSCRIBE"
        else:
            return
        self._in_flight = set(batch)
        connection.change_subscriptions(command, batch)
        self._flight_deadline = self._clock.callLater(self._reply_seconds, self._not_confirmed, connection)

    def _confirmed(self, kind: bytes, key: bytes) -> None:
        self._in_flight.discard(key)
        if kind == b"subscribe":
            self._restoring = max(0, self._restoring - 1)
            subscription = self._by_key.get(key)
            if subscription is not None and subscription.state is _State.ASKED:
                subscription.state = _State.LIVE
                waiters, subscription.waiters = subscription.waiters, []
                for waiter in waiters:
                    waiter.callback(None)
            if not self._restoring and self._down_since is not None:
                self._restored()
        if not self._in_flight:
            self._end_flight()
            self._next_batch()

    def _restored(self) -> None:
        assert self._down_since is not None
        seconds = self._clock.seconds() - self._down_since
        self._down_since = None
        self._counters.missed_windows += 1
        self._counters.missed_seconds += seconds
        self._receiver.missed(seconds)

    def _refused(self, error: ReplyError) -> None:
        """The ACL forbids a channel of the batch. Redis refuses all of it, so ask for each by itself."""
        keys, self._in_flight = self._in_flight, set()
        self._end_flight()
        asked = [self._by_key[key] for key in keys if key in self._by_key]
        if len(asked) == 1 or not error.is_refusal:
            for subscription in asked:
                del self._by_key[subscription.key]
                self._restoring = max(0, self._restoring - 1)
                for waiter in subscription.waiters:
                    waiter.errback(HubRefused(self._hub, f"channel {subscription.channel}: {error}"))
                subscription.waiters = []
            self._counters.subscribed_channels = len(self._by_key)
            self._next_batch()
            return
        connection = self._connection
        if connection is None:
            return
        half = len(asked) // 2
        for subscription in asked:
            subscription.state = _State.WANTED
        # Halves, so that one forbidden channel among 512 costs 9 more commands rather than 512.
        self._wanted.extendleft(reversed(asked[half:]))
        first = [subscription.key for subscription in asked[:half]]
        for subscription in asked[:half]:
            subscription.state = _State.ASKED
        self._in_flight = set(first)
        connection.change_subscriptions(b"SUBSCRIBE", first)
        self._flight_deadline = self._clock.callLater(self._reply_seconds, self._not_confirmed, connection)

    def _not_confirmed(self, connection: SubscriberProtocol) -> None:
        self._flight_deadline = None
        connection.cut(f"subscriptions not confirmed within {self._reply_seconds:g} s")

    def _end_flight(self) -> None:
        self._in_flight.clear()
        if self._flight_deadline is not None and self._flight_deadline.active():
            self._flight_deadline.cancel()
        self._flight_deadline = None

    def _drop_lingering(self) -> None:
        self._linger_timer = None
        now = self._clock.seconds()
        while self._lingering and self._lingering[0].linger_until <= now:
            subscription = self._lingering.popleft()
            if self._by_key.get(subscription.key) is subscription and subscription.state is _State.LINGERING:
                del self._by_key[subscription.key]
                if self._connection is not None:
                    self._unwanted.append(subscription.key)
        self._counters.subscribed_channels = len(self._by_key)
        self._soon()
        if self._lingering:
            wait = self._lingering[0].linger_until - now
            self._linger_timer = self._clock.callLater(max(0.01, wait), self._drop_lingering)
