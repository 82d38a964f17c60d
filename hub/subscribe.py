"""Which channels this shard hears on one Redis server, and what it hears on them.

A channel's subscription:

    WANTED      asked for; waits for its batch (or for the link)
    ASKED       its SUBSCRIBE is on the connection
    LIVE        confirmed: every later publication is heard

    WANTED → ASKED → LIVE;  any → WANTED when the link goes down

One that is subscribed with a history is also followed, see ``repair``: what is heard on it goes through
there, and who subscribes waits for its position.

A subscription without local members lingers: it keeps its state until ``linger_until``, then it is
dropped (LIVE ones with an UNSUBSCRIBE), unless somebody came back before.

One batch is on the connection at a time: at most ``BATCH`` channels in one command, the next when all of it
is confirmed. So 10,000 channels joined in one turn are 20 commands, a re-subscription that follows an
UNSUBSCRIBE of the same channel cannot be confirmed by the wrong reply, and Redis' query buffer stays small.
In a cluster a batch is as many commands, answered in their order, and a refusal is that of one channel.
After a reconnect all are asked for again; when the last is confirmed the window in which plain channels may
have lost something is told to the receiver: it began when the lost connection was last heard, which for a
deaf one was long before it was cut.

In a cluster a channel may have its home on another server: an answer says so, or this one takes it away. It
is told (``moved``), and asked for again every ``ELSEWHERE_SECONDS`` while it is still here. Who knows
better takes it out (``release``) and puts it into the subscriptions of the other server (``adopt``), where
it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from spread.hub.api import Event, History, HubCounters, Joined, Left, Position, Receiver
from spread.hub.dialect import CLASSIC, Dialect
from spread.hub.envelope import (
    KIND_JOINED,
    KIND_LEFT,
    KIND_PRESSURE,
    KIND_PUBLICATION,
    MalformedEnvelope,
    UnknownVersion,
    unpack,
)
from spread.hub.errors import HubError, HubRefused, HubUnavailable, ReplyError
from spread.hub.link import GRACE_SECONDS, SubscriberProtocol
from spread.hub.reactor import Clock, Timer
from spread.hub.repair import Follower, FollowState, Repair
from spread.hub.subscription import State, Subscription

__all__ = ["BATCH", "Subscriptions"]

BATCH = 512
"""Channels in one SUBSCRIBE or UNSUBSCRIBE."""

MAX_ORIGINS = 4096
"""Shards whose last sequence is remembered; those that were first heard longest ago are forgotten first."""

ELSEWHERE_SECONDS = 0.2
"""A channel that another server of the cluster serves is asked for again after this pause."""


class Subscriptions:
    """The subscriber side of one link.

    :param prefix: what stands before a channel's name in Redis, and ``}`` after it.
    :param reply_seconds: a connection silent for this long, while a batch waits to be confirmed, is cut.
    :param restored: called when a new connection hears all that was subscribed before; gives the Redis
        channel that it subscribes to itself on that connection, if any: a refusal of that one is not ours.
    :param other: takes the messages of channels that are none of ours.
    :param is_part: channels are spread over several servers, of which this is one.
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
        repair: Repair,
        restored: Callable[[], bytes | None] = lambda: None,
        other: Callable[[bytes, bytes], None] = lambda key, payload: None,
        dialect: Dialect = CLASSIC,
        is_part: bool = False,
    ) -> None:
        self._clock = clock
        self._dialect = dialect
        self._is_part = is_part
        self.moved: Callable[[str, str], None] = lambda channel, why: None
        """Called with a channel that this server does not serve, and what it said."""
        self._hub = hub
        self._prefix = prefix
        self._linger_seconds = linger_seconds
        self._reply_seconds = reply_seconds
        self._receiver = receiver
        self._counters = counters
        self._repair = repair
        repair.became_live = self._tell_position
        repair.refused = self._may_not_follow
        self._restored = restored
        self._other = other
        self._connection: SubscriberProtocol | None = None
        self._by_key: dict[bytes, Subscription] = {}
        self._wanted: dict[bytes, Subscription] = {}
        self._unwanted: deque[bytes] = deque()
        # In order of their end; whoever comes back is taken out again.
        self._lingering: dict[bytes, Subscription] = {}
        # In the order in which they are answered.
        self._in_flight: dict[bytes, None] = {}
        # Not served here, as it seems: to be asked for again.
        self._elsewhere: dict[bytes, Subscription] = {}
        self._elsewhere_timer: Timer | None = None
        # Sizes of the halves of refused batches, which stand first among the wanted; the next one is last.
        self._halves: list[int] = []
        self._flight_deadline: Timer | None = None
        self._turn: Timer | None = None
        self._linger_timer: Timer | None = None
        self._last_sequence: dict[bytes, int] = {}
        self._down_since: float | None = None
        self._moved_since: float | None = None
        self._restoring: set[bytes] = set()
        self._is_restored = False
        self._foreign: bytes | None = None  # what ``restored`` subscribes to, until it is answered
        self._is_stopped = False
        # Counted, and told at most once a minute each: a foreign release may publish thousands a second.
        self._told_at: dict[str, float] = {}

    @property
    def is_live(self) -> bool:
        """The link is up and all that was subscribed before it broke is subscribed again."""
        return self._is_restored

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """See ``Hub.subscribe``."""
        if self._is_stopped:
            return fail(HubUnavailable(self._hub, "this shard is stopping"))
        key = self._prefix + channel.encode() + b"}"
        subscription = self._by_key.get(key)
        if subscription is None:
            subscription = self._by_key[key] = Subscription(channel, key)
            self._counters.subscribed_channels += 1
            self._wanted[key] = subscription
            self._soon()
        elif subscription.linger_until is not None:
            subscription.linger_until = None
            self._lingering.pop(key, None)
        if history is not None:
            return self._follow(subscription, history)
        subscription.has_plain = True
        if subscription.state is State.LIVE:
            return succeed(None)
        waiter: Deferred[Position | None] = Deferred(subscription.waiters.remove)
        subscription.waiters.append(waiter)
        return waiter

    def _follow(self, subscription: Subscription, history: History) -> Deferred[Position | None]:
        follower = subscription.follower
        if follower is None:
            follower = self._repair.follow(subscription.channel, subscription.key, history)
            subscription.follower = follower
            if subscription.state is State.LIVE:
                self._repair.confirmed(follower, is_heard=True)
        follower.history = history
        if follower.state is FollowState.LIVE:
            return succeed(follower.position)
        waiter: Deferred[Position | None] = Deferred(subscription.position_waiters.remove)
        subscription.position_waiters.append(waiter)
        return waiter

    def unsubscribe(self, channel: str) -> None:
        """See ``Hub.unsubscribe``."""
        subscription = self._by_key.get(self._prefix + channel.encode() + b"}")
        if subscription is None or subscription.linger_until is not None or self._is_stopped:
            return
        self._linger(subscription)
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
        if self._down_since is not None:
            self._restoring = set(self._wanted)
        self._check_restored()
        self._next_batch()

    def link_down(self) -> None:
        """The connection is gone; nothing is heard until the next one."""
        if self._down_since is None and self._connection is not None:
            self._down_since = self._connection.heard_at
        self._connection = None
        self._is_restored = False
        self._foreign = None
        self._end_flight()
        self._unwanted.clear()
        self._halves.clear()
        self._restoring.clear()
        self._elsewhere.clear()
        self._repair.link_down()
        lingering, self._lingering = self._lingering, {}
        for subscription in lingering.values():
            self._forget(subscription)
        for subscription in self._by_key.values():
            subscription.state = State.WANTED
        self._wanted = dict(self._by_key)
        for subscription in lingering.values():
            self._fail_waiters(subscription, HubUnavailable(self._hub, "left before it was subscribed"))

    def stop(self) -> None:
        """Cancel timers, fail who waits. Idempotent."""
        self._is_stopped = True
        for timer in (self._turn, self._linger_timer, self._elsewhere_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._turn = self._linger_timer = self._elsewhere_timer = None
        self._end_flight()
        self._connection = None
        self._is_restored = False
        self._repair.stop()
        for subscription in list(self._by_key.values()):
            self._fail_waiters(subscription, HubUnavailable(self._hub, "this shard is stopping"))

    # -- what is heard: the message path ---------------------------------------------------------------

    def message(self, key: bytes, payload: bytes) -> None:
        """One message of a subscribed channel; called for each, so nothing here logs or allocates twice."""
        subscription = self._by_key.get(key)
        if subscription is None:
            self._other(key, payload)  # or unsubscribed, and the last messages were on their way
            return
        try:
            kind, sequence, publication = unpack(payload)
        except MalformedEnvelope as error:
            self._odd(subscription.channel, error)
            return
        follower = subscription.follower
        event: Event = publication
        if kind == KIND_PUBLICATION:
            shard = publication.shard
            last = self._last_sequence
            if sequence > last.get(shard, 0):
                if shard not in last and len(last) >= MAX_ORIGINS:
                    for forgotten in list(last)[: MAX_ORIGINS // 2]:
                        del last[forgotten]
                last[shard] = sequence
            elif follower is None or not publication.offset:  # with both, the offset decides
                self._counters.duplicates += 1
                return
            self._counters.received += 1
        elif kind == KIND_PRESSURE:
            self._receiver.pressed(subscription.channel)
            return
        elif kind in (KIND_JOINED, KIND_LEFT) and publication.info is not None:
            event = (Joined if kind == KIND_JOINED else Left)(publication.info)
        else:
            self._odd(subscription.channel, MalformedEnvelope(f"kind {kind}"))
            return
        if follower is None:
            self._receiver.received(subscription.channel, event)
        else:
            follower.heard(event)

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
            self._turn = self._clock.callLater(0, self._turn_over)

    def _turn_over(self) -> None:
        self._turn = None
        self._next_batch()

    def _next_batch(self) -> None:
        if self._connection is None or self._in_flight:
            return
        if self._unwanted:
            self._send(
                self._dialect.unsubscribe,
                [self._unwanted.popleft() for _ in range(min(BATCH, len(self._unwanted)))],
            )
            return
        size = self._halves.pop() if self._halves else BATCH
        self._ask(list(islice(self._wanted.values(), size)))

    def _ask(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            subscription.state = State.ASKED
            del self._wanted[subscription.key]
        self._send(self._dialect.subscribe, [subscription.key for subscription in subscriptions])

    def _send(self, command: bytes, keys: list[bytes]) -> None:
        connection = self._connection
        if keys and connection is not None:
            self._in_flight = dict.fromkeys(keys)
            connection.change_subscriptions(command, keys)
            self._watch_flight(connection)

    def _watch_flight(self, connection: SubscriberProtocol) -> None:
        grace = min(GRACE_SECONDS, self._reply_seconds / 4)
        self._flight_deadline = self._clock.callLater(
            self._reply_seconds - grace, self._flight_late, connection, connection.bytes_received, grace
        )

    def _flight_late(self, connection: SubscriberProtocol, received: int, grace: float) -> None:
        # While we do not read, or while other things come first, the confirmation cannot have come.
        if connection.is_paused or connection.bytes_received != received:
            self._watch_flight(connection)
        elif grace:
            self._flight_deadline = self._clock.callLater(grace, self._flight_late, connection, received, 0.0)
        else:
            self._flight_deadline = None
            connection.cut(f"subscriptions not confirmed within {self._reply_seconds:g} s")

    def _confirmed(self, is_subscribed: bool, key: bytes) -> None:
        is_asked = key in self._in_flight
        self._in_flight.pop(key, None)
        if key == self._foreign:
            self._foreign = None
        subscription = self._by_key.get(key)
        if not is_subscribed and not is_asked:
            if subscription is not None and subscription.state is State.LIVE:
                self._is_elsewhere(subscription, "its slot has moved")
        elif is_subscribed:
            if subscription is not None and subscription.state is State.ASKED:
                subscription.state = State.LIVE
                self._hears_again(subscription)
                waiters, subscription.waiters = subscription.waiters, []
                if subscription.follower is not None:
                    self._repair.confirmed(subscription.follower)
                for waiter in waiters:
                    waiter.callback(None)
            self._restoring.discard(key)
            self._check_restored()
        if not self._in_flight:
            self._tell_moved()
            self._end_flight()
            self._next_batch()

    def _hears_again(self, subscription: Subscription) -> None:
        if subscription.deaf_since is not None:
            if subscription.has_plain:
                self._moved_since = min(self._moved_since or subscription.deaf_since, subscription.deaf_since)
            subscription.deaf_since = None

    def _tell_moved(self) -> None:
        """One window for all channels of a batch whose slots had moved."""
        if self._moved_since is not None:
            seconds = self._clock.seconds() - self._moved_since
            self._moved_since = None
            self._missed(seconds)

    def _missed(self, seconds: float) -> None:
        self._counters.missed_windows += 1
        self._counters.missed_seconds += seconds
        self._receiver.missed(seconds)

    def _check_restored(self) -> None:
        if self._restoring or self._is_restored or self._connection is None:
            return
        self._is_restored = True
        if self._down_since is not None:
            seconds = self._clock.seconds() - self._down_since
            self._down_since = None
            if self._by_key or not self._is_part:  # else the windows of the other servers count
                self._missed(seconds)
        self._foreign = self._restored()
        if self._foreign is not None and self._dialect.is_sharded:
            self._in_flight[self._foreign] = None  # answered after those that are on their way already

    def _refused(self, error: ReplyError) -> None:
        """An ACL forbids a channel of the batch. Redis refuses the whole batch for it: ask for halves."""
        if self._foreign is not None and error.is_refusal and not self._dialect.is_sharded:
            # Nothing of a batch before it can be refused any more, and one behind it is answered later.
            self.log.error("channel {channel}: {error}", channel=self._foreign.decode(), error=error)
            self._foreign = None
            return
        if self._dialect.is_sharded:
            self._refused_one(error)
            return
        in_flight = (self._by_key.get(key) for key in self._in_flight)
        asked = [found for found in in_flight if found is not None and found.state is State.ASKED]
        self._end_flight()
        if not error.is_refusal:
            if self._connection is not None:
                self._connection.cut(str(error))
        elif len(asked) > 1:
            # One forbidden channel among 512 costs 18 commands more this way, not 512.
            half = len(asked) // 2
            self._halves.append(len(asked) - half)
            for subscription in asked:
                subscription.state = State.WANTED
            self._wanted = {subscription.key: subscription for subscription in asked} | self._wanted
            self._ask(asked[:half])
        else:
            for subscription in asked:
                self._forbid(subscription, error)
            self._next_batch()

    def _refused_one(self, error: ReplyError) -> None:
        key = next(iter(self._in_flight), None)
        if key is None:
            if self._connection is not None:
                self._connection.cut(str(error))
            return
        del self._in_flight[key]
        subscription = self._by_key.get(key)
        if key == self._foreign:
            self.log.error("channel {channel}: {error}", channel=key.decode(), error=error)
            self._foreign = None
        elif subscription is not None and subscription.state is State.ASKED:
            if error.is_refusal:
                self._forbid(subscription, error)
            else:
                self._is_elsewhere(subscription, str(error))
        if not self._in_flight:
            self._end_flight()
            self._next_batch()

    def _is_elsewhere(self, subscription: Subscription, why: str) -> None:
        if subscription.state is State.LIVE:
            subscription.deaf_since = self._clock.seconds()
        subscription.state = State.WANTED
        self._elsewhere[subscription.key] = subscription
        if subscription.follower is not None:
            self._repair.put_away(subscription.follower)
        if self._elsewhere_timer is None:
            self._elsewhere_timer = self._clock.callLater(ELSEWHERE_SECONDS, self._ask_elsewhere)
        self.moved(subscription.channel, why)

    def _ask_elsewhere(self) -> None:
        self._elsewhere_timer = None
        elsewhere, self._elsewhere = self._elsewhere, {}
        for key, subscription in elsewhere.items():
            if self._by_key.get(key) is subscription and subscription.state is State.WANTED:
                self._wanted[key] = subscription
        self._soon()

    # -- from one server of a cluster to another -------------------------------------------------------

    def release(self, leaves: Callable[[str], bool]) -> list[Subscription]:
        """Take out the channels of which ``leaves`` says so, with all that waits for them.

        What is still heard of them here is dropped; their positions stay as they are.
        """
        released = [each for each in self._by_key.values() if leaves(each.channel)]
        for subscription in released:
            key = subscription.key
            if subscription.state is State.LIVE and self._connection is not None:
                subscription.deaf_since = self._clock.seconds()
                self._unwanted.append(key)
            del self._by_key[key]
            self._wanted.pop(key, None)
            self._elsewhere.pop(key, None)
            self._restoring.discard(key)
            if self._lingering.pop(key, None) is not None:
                subscription.linger_until = 0.0
            if subscription.follower is not None:
                self._repair.release(subscription.follower)
        self._counters.subscribed_channels -= len(released)
        self._check_restored()
        self._soon()
        return released

    def adopt(self, subscriptions: Iterable[Subscription]) -> None:
        """Take in what ``release`` of another server has given."""
        for subscription in subscriptions:
            self._counters.subscribed_channels += 1
            subscription.state = State.WANTED
            self._by_key[subscription.key] = self._wanted[subscription.key] = subscription
            if subscription.follower is not None:
                self._repair.adopt(subscription.follower)
            if subscription.linger_until is not None:
                self._linger(subscription)
                if self._linger_timer is None:
                    self._linger_timer = self._clock.callLater(self._linger_seconds, self._drop_lingering)
            if self._is_stopped:
                self._fail_waiters(subscription, HubUnavailable(self._hub, "this shard is stopping"))
        self._soon()

    def _forbid(self, subscription: Subscription, error: ReplyError) -> None:
        self.log.error("channel {channel}: {error}", channel=subscription.channel, error=error)
        self._lingering.pop(subscription.key, None)
        self._forget(subscription)
        self._fail_waiters(subscription, HubRefused(self._hub, f"channel {subscription.channel}: {error}"))
        self._check_restored()

    def _tell_position(self, follower: Follower) -> None:
        subscription = self._by_key[follower.key]
        waiters, subscription.position_waiters = subscription.position_waiters, []
        for waiter in waiters:
            waiter.callback(follower.position)

    def _may_not_follow(self, follower: Follower, error: HubRefused) -> None:
        subscription = self._by_key[follower.key]
        self.log.error("channel {channel}: {error}", channel=subscription.channel, error=error)
        subscription.follower = None
        if not subscription.has_plain:
            self.unsubscribe(subscription.channel)
        waiters, subscription.position_waiters = subscription.position_waiters, []
        for waiter in waiters:
            waiter.errback(error)

    def _fail_waiters(self, subscription: Subscription, error: HubError) -> None:
        waiters = subscription.waiters + subscription.position_waiters
        subscription.waiters, subscription.position_waiters = [], []
        for waiter in waiters:
            waiter.errback(error)

    def _forget(self, subscription: Subscription) -> None:
        del self._by_key[subscription.key]
        self._wanted.pop(subscription.key, None)
        self._elsewhere.pop(subscription.key, None)
        self._restoring.discard(subscription.key)
        if subscription.follower is not None:
            self._repair.forget(subscription.follower)
        self._counters.subscribed_channels -= 1

    def _end_flight(self) -> None:
        self._in_flight.clear()
        if self._flight_deadline is not None and self._flight_deadline.active():
            self._flight_deadline.cancel()
        self._flight_deadline = None

    def _linger(self, subscription: Subscription) -> None:
        subscription.linger_until = self._clock.seconds() + self._linger_seconds
        self._lingering[subscription.key] = subscription

    def _drop_lingering(self) -> None:
        self._linger_timer = None
        now = self._clock.seconds()
        due = takewhile(lambda lingering: (lingering.linger_until or 0.0) <= now, self._lingering.values())
        dropped = []
        for subscription in list(due):
            del self._lingering[subscription.key]
            if subscription.state is State.ASKED:
                self._linger(subscription)  # its confirmation is on the way; an UNSUBSCRIBE belongs after it
                continue
            if subscription.state is State.LIVE:
                self._unwanted.append(subscription.key)
            self._forget(subscription)
            dropped.append(subscription)
        self._check_restored()
        self._soon()
        for subscription in self._lingering.values():
            wait = (subscription.linger_until or 0.0) - now
            self._linger_timer = self._clock.callLater(max(0.01, wait), self._drop_lingering)
            break
        for subscription in dropped:
            self._fail_waiters(subscription, HubUnavailable(self._hub, "left before it was subscribed"))
