"""The hub in memory: the reference implementation of ``api.Hub``, for tests and for one shard alone.

Hubs that share an ``Exchange`` are a cluster inside one process. Deliveries take a reactor turn, as they
do through Redis, so that code which works only when they are instant fails here too. ``Exchange.cut``
and ``restore`` take the hub away and give it back: what is on its way to a shard is lost then, and read
again from what is kept in the channels that it follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed

from spread.hub.api import (
    PLAIN,
    ClientInfo,
    Format,
    History,
    HubCounters,
    Incumbent,
    Joined,
    Left,
    Load,
    Ownership,
    Position,
    PresenceStats,
    Publication,
    PublishOptions,
    Receiver,
    ShardIdentity,
    ShardInfo,
    Stream,
    check_excluded,
)
from spread.hub.errors import Fenced, HubError, HubUnavailable, JournalFull, LeaseTaken, MessageTooLarge
from spread.hub.memory_exchange import Exchange
from spread.hub.memory_inbox import MemoryInbox
from spread.hub.memory_owners import MemoryOwners
from spread.hub.memory_presence import MemoryPresence, Untold
from spread.hub.memory_questions import MemoryQuestions
from spread.hub.process import is_gone
from spread.hub.reactor import Timer

__all__ = ["Exchange", "MemoryHub"]

HEARTBEAT_SECONDS = 2.0

T = TypeVar("T")

_Waiting = tuple[str, Publication, PublishOptions, "Deferred[Position | None]", Timer]


class MemoryHub:
    """See ``api.Hub`` for the promises.

    :param incarnation: 16 hex digits.
    :param linger_seconds: how long a channel is heard after its last local member left.
    :param ask_seconds: how long all shards may take to answer a question.
    """

    MAX_PUBLICATION_BYTES = 16 << 20

    def __init__(
        self,
        exchange: Exchange,
        incarnation: str,
        *,
        linger_seconds: float = 3.0,
        ask_seconds: float = 10.0,
    ) -> None:
        self.name = "memory"
        self.counters = HubCounters()
        self._exchange = exchange
        self._clock = exchange.clock
        self._shard = bytes.fromhex(incarnation)
        self._linger_seconds = linger_seconds
        self._receiver: Receiver | None = None
        self.inbox = MemoryInbox(self._clock, exchange.streams, self.counters)
        self._lingering: dict[str, Timer] = {}
        self._waiting: deque[_Waiting] = deque()
        self._subscribing: list[tuple[str, History | None, Deferred[Position | None]]] = []
        self._number: int | None = None
        self._identity: ShardIdentity | None = None
        self._load: Callable[[], Load] | None = None
        self._is_stopped = False
        self._untold = Untold(self.counters)
        self._questions = MemoryQuestions(
            exchange.switchboard, self.name, self._shard, ask_seconds, self.counters
        )

    @property
    def is_live(self) -> bool:
        """See ``api.Hub``."""
        return self._receiver is not None and not self._exchange.is_cut and not self._is_stopped

    @property
    def holds_lease(self) -> bool:
        """See ``api.Hub``."""
        return self._number is not None

    def start(self, receiver: Receiver) -> Deferred[None]:
        """See ``api.Hub``."""
        if self._exchange.is_cut:
            return fail(HubUnavailable(self.name, "cut"))
        self._receiver = receiver
        self._exchange.hubs.append(self)
        self.inbox.start(receiver)
        self._questions.start(receiver)
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """See ``api.Hub``."""
        if not self._is_stopped:
            self._is_stopped = True
            self._questions.stop()
            if self in self._exchange.hubs:
                self._exchange.hubs.remove(self)
            for members in self._exchange.subscribers.values():
                members.pop(self, None)
            for timer in self._lingering.values():
                timer.cancel()
            self._lingering.clear()
            self.inbox.stop()
            if self._number is not None and self._exchange.leases[self._number][0] is self:
                del self._exchange.leases[self._number]
            self._number = None
            while self._waiting:
                _, publication, _, result, timer = self._waiting.popleft()
                timer.cancel()
                self._fail(publication, result, HubUnavailable(self.name, "this shard is stopping"))
            waiting, self._subscribing = self._subscribing, []
            for _, _, waiter in waiting:
                waiter.errback(HubUnavailable(self.name, "this shard is stopping"))
        return succeed(None)

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """See ``api.Hub``."""
        if not self.is_live:
            return fail(HubUnavailable(self.name, "cut"))
        leases = self._exchange.leases
        if shard is None:
            shard = next(number for number in range(len(leases) + 1) if self._holder(number) is None)
        held_by = self._holder(shard)
        if held_by is not None:
            return fail(LeaseTaken(shard, held_by.host, held_by.pid))
        leases[shard] = (self, identity)
        self._number, self._identity = shard, identity
        return succeed(shard)

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """See ``api.Hub``. Nobody can take a number here while its holder lives."""
        self._load = load

    def roster(self) -> Deferred[list[ShardInfo]]:
        """See ``api.Hub``."""
        if not self.is_live:
            return fail(HubUnavailable(self.name, "cut"))
        return succeed(
            [
                ShardInfo(shard=number, identity=identity, load=hub._load(), age_seconds=0.0)
                for number, (hub, identity) in sorted(self._exchange.leases.items())
                if hub._load is not None
            ]
        )

    def next_client(self) -> Deferred[int]:
        """See ``api.Hub``."""
        if not self.is_live:
            return fail(HubUnavailable(self.name, "cut"))
        self._exchange.clients += 1
        return succeed(self._exchange.clients)

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        check_excluded(options.exclude)
        if len(data) > self.MAX_PUBLICATION_BYTES:
            return fail(MessageTooLarge(len(data), self.MAX_PUBLICATION_BYTES))
        if self._is_stopped:
            return fail(self._away())
        counters = self.counters
        publication = Publication(
            data,
            int(format),
            self._shard,
            session,
            info=options.info,
            tags=options.tags,
            delta=options.delta,
            exclude=options.exclude,
        )
        if self.is_live:
            return self._take(channel, publication, options)
        if counters.journal_publications >= self._exchange.max_waiting:
            counters.publish_failures += 1
            return fail(JournalFull(self.name, counters.journal_publications, counters.journal_bytes))
        counters.journal_publications += 1
        counters.journal_bytes += len(data)
        result: Deferred[Position | None] = Deferred()
        timer = self._clock.callLater(self._exchange.publish_seconds, self._expire)
        self._waiting.append((channel, publication, options, result, timer))
        return result

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """See ``api.Hub``."""
        self._untold.announced(channel, event, self.is_live)
        if not self.is_live:
            return fail(self._away())
        self._exchange.spread(channel, event)
        return succeed(None)

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        if self._is_stopped:
            return fail(self._away())
        timer = self._lingering.pop(channel, None)
        if timer is not None:
            timer.cancel()
        if self.is_live:
            self._listen(channel, history)
            return succeed(self.inbox.position(channel) if history is not None else None)
        if history is None and self in self._exchange.subscribers.get(channel, ()):
            return succeed(None)
        waiter: Deferred[Position | None] = Deferred(self._forget_waiter)
        self._subscribing.append((channel, history, waiter))
        return waiter

    def unsubscribe(self, channel: str) -> None:
        """See ``api.Hub``."""
        asked = self in self._exchange.subscribers.get(channel, ()) or any(
            waiting == channel for waiting, _, _ in self._subscribing
        )
        if asked and channel not in self._lingering:
            self._lingering[channel] = self._clock.callLater(self._linger_seconds, self._drop, channel)

    def press(self, channel: str) -> None:
        """See ``api.Hub``."""
        if self.is_live:
            for hub in list(self._exchange.subscribers.get(channel, ())):
                self._clock.callLater(0, hub._pressed, channel)

    def pause(self) -> None:
        """See ``api.Hub``."""
        self.inbox.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        self.inbox.resume()

    def history(
        self,
        channel: str,
        history: History,
        *,
        since: Position | None = None,
        limit: int = 0,
        reverse: bool = False,
    ) -> Deferred[Stream]:
        """See ``api.Hub``."""
        if not self.is_live:
            return fail(self._away())
        return succeed(self._exchange.streams.read(channel, history, since, limit, reverse))

    def remove_history(self, channel: str) -> Deferred[None]:
        """See ``api.Hub``."""
        if not self.is_live:
            return fail(self._away())
        self._exchange.streams.remove(channel)
        return succeed(None)

    # -- presence --------------------------------------------------------------------------------------

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """See ``api.Hub``."""
        self._untold.added(channel, info.client)
        return self._present(lambda presence: presence.add(channel, info, ttl_seconds))

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """See ``api.Hub``."""
        if not self.is_live:
            self._untold.removed(channel, client)
        return self._present(lambda presence: presence.remove(channel, client))

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """See ``api.Hub``."""
        return self._present(lambda presence: presence.read(channel))

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """See ``api.Hub``."""
        return self._present(lambda presence: presence.stats(channel))

    def _present(self, use: Callable[[MemoryPresence], T]) -> Deferred[T]:
        if not self.is_live:
            return fail(self._away())
        return succeed(use(self._exchange.presence))

    # -- ownership, pulses, questions ------------------------------------------------------------------

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.owner_of(channel))

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.take(channel, self._shard.hex(), over))

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.give_up(channel, ownership))

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.save(channel, ownership, state, ttl_seconds))

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.load(channel))

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.pulse(self._shard.hex(), seconds))

    def end_pulse(self) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._owned(lambda owners: owners.end_pulse(self._shard.hex()))

    def _owned(self, use: Callable[[MemoryOwners], T]) -> Deferred[T]:
        if not self.is_live:
            return fail(self._away())
        try:
            return succeed(use(self._exchange.owners))
        except HubError as error:
            return fail(error)

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        return self._questions.ask(question, shard)

    # -- inside ----------------------------------------------------------------------------------------

    def _take(
        self, channel: str, publication: Publication, options: PublishOptions
    ) -> Deferred[Position | None]:
        try:
            position = self._exchange.take(channel, publication, options)
        except Fenced as error:
            self.counters.publish_failures += 1
            return fail(error)
        self.counters.published += 1
        return succeed(position)

    def _away(self) -> HubUnavailable:
        return HubUnavailable(self.name, "this shard is stopping" if self._is_stopped else "cut")

    def _holder(self, shard: int) -> ShardIdentity | None:
        """Who holds a number, if another live process does."""
        holder, identity = self._exchange.leases.get(shard, (self, None))
        return None if holder is self or identity is None or is_gone(identity) else identity

    def _listen(self, channel: str, history: History | None) -> None:
        members = self._exchange.subscribers.setdefault(channel, {})
        is_heard = self in members
        if not is_heard:
            members[self] = None
            self.counters.subscribed_channels += 1
        if history is not None:
            self.inbox.follow(channel, history, is_heard)

    def _drop(self, channel: str) -> None:
        del self._lingering[channel]
        members = self._exchange.subscribers.get(channel, {})
        if self in members:
            del members[self]
            if not members:
                del self._exchange.subscribers[channel]
            self.counters.subscribed_channels -= 1
        self.inbox.unfollow(channel)
        waiting = [waiter for name, _, waiter in self._subscribing if name == channel]
        self._subscribing = [entry for entry in self._subscribing if entry[0] != channel]
        for waiter in waiting:
            waiter.errback(HubUnavailable(self.name, "left before it was subscribed"))

    def _forget_waiter(self, waiter: Deferred[Position | None]) -> None:
        self._subscribing = [entry for entry in self._subscribing if entry[2] is not waiter]

    def _pressed(self, channel: str) -> None:
        if self._receiver is not None and not self._is_stopped:
            self._receiver.pressed(channel)

    def _expire(self) -> None:
        _, publication, _, result, _ = self._waiting.popleft()
        seconds = self._exchange.publish_seconds
        self._fail(publication, result, HubUnavailable(self.name, f"it is away for {seconds:g} s"))

    def _fail(
        self, publication: Publication, result: Deferred[Position | None], error: HubUnavailable
    ) -> None:
        self.counters.publish_failures += 1
        self._forget(publication)
        result.errback(error)

    def _forget(self, publication: Publication) -> None:
        self.counters.journal_publications -= 1
        self.counters.journal_bytes -= len(publication.data)

    def hears_again(self, seconds: float) -> None:
        """The exchange is back: hear what was kept meanwhile, subscribe what waits for it."""
        self.counters.reconnects += 1
        self.counters.missed_windows += 1
        self.counters.missed_seconds += seconds
        if self._receiver is not None:
            self._receiver.missed(seconds)
        self.inbox.catch_up()
        for channel, history, _ in self._subscribing:
            self._listen(channel, history)

    def speaks_again(self) -> None:
        """All hear again: tell who came and left, publish what waits."""
        for channel, event in self._untold.tell(self._exchange.presence):
            self._exchange.spread(channel, event)
        subscribed, self._subscribing = self._subscribing, []
        waiting, self._waiting = self._waiting, deque()
        taken = []
        for channel, publication, options, result, timer in waiting:
            timer.cancel()
            self._forget(publication)
            taken.append((result, self._take(channel, publication, options)))
        # Last, since whoever is told may publish again, which must not overtake what waited.
        for channel, history, waiter in subscribed:
            waiter.callback(self.inbox.position(channel) if history is not None else None)
        for result, outcome in taken:
            outcome.chainDeferred(result)
