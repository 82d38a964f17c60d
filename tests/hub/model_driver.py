"""Drives hubs by a list of actions, and tells the model what comes of it.

An action is a small value, so that a list of them can be drawn, shrunk, printed, and pasted into a test. Each
is done without waiting for what it causes; time passes in ``Turns``, ``Pass`` and ``Quiet`` alone. At the end
all that was taken away is given back, the driver waits until the model lacks nothing, sends one more
publication through each channel, and the model judges.

``MemoryDriver`` has a clock of its own. ``RedisDriver`` runs on the reactor, with a Valkey that writes what
it takes to its file before it answers; each connection of a shard is a ``_Wire``, which can be cut, be slow,
and lose what goes one way.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure

from spread.hub.api import Event, Format, History, Position, Publication, PublishOptions
from spread.hub.envelope import unpack
from spread.hub.errors import HubUnavailable, JournalFull
from spread.hub.keys import Keys
from spread.hub.link import SubscriberProtocol
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.process import this_process
from tests.hub.model import Attempt, Kept, Model, shown
from tests.hub.servers import Valkey
from tests.hub.shards import Recorder, Shard, eventually, pause, reactor, redis_shard

__all__ = [
    "Action",
    "Away",
    "Back",
    "Cut",
    "Delay",
    "Deliver",
    "Drop",
    "Elsewhere",
    "FlushScripts",
    "Forget",
    "Hold",
    "Kill",
    "KillClients",
    "Lose",
    "MemoryDriver",
    "Pass",
    "Publish",
    "Quiet",
    "Read",
    "RedisDriver",
    "Remove",
    "Renew",
    "Resume",
    "Subscribe",
    "Trim",
    "Turns",
    "Unsubscribe",
]

SHARDS = 3

SIZES = {"long": 200, "short": 3}
"""The channels, and how many publications each keeps."""

HISTORIES = {channel: History(size, 60, 600) for channel, size in SIZES.items()}

PUBLISH_SECONDS = 20.0

SETTLE_SECONDS = 20.0
"""What is missing after that is missing for good. To connect again takes up to 2 s, and shards that are back
wait up to 2.2 s for each other."""

STORY_LINES = 100
"""Of what happened, the last ones are shown with what was wrong."""


# -- actions -------------------------------------------------------------------------------------------


class Action:
    """Shown as it is written in a test."""

    def __repr__(self) -> str:
        values = [(each, getattr(self, each.name)) for each in fields(self)]  # type: ignore[arg-type]
        told = [repr(value) for each, value in values if each.default is MISSING]
        told += [f"{each.name}={value!r}" for each, value in values if value != each.default is not MISSING]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, repr=False)
class Publish(Action):
    """A shard publishes, some times in a row."""

    shard: int
    channel: str
    times: int = 1
    is_kept: bool = True
    key: str = ""
    version: int = 0


@dataclass(frozen=True, repr=False)
class Subscribe(Action):
    """A shard subscribes, with a history or without."""

    shard: int
    channel: str
    is_followed: bool = True


@dataclass(frozen=True, repr=False)
class Unsubscribe(Action):
    """A shard gives up a channel."""

    shard: int
    channel: str


@dataclass(frozen=True, repr=False)
class Read(Action):
    """A shard reads what is kept."""

    shard: int
    channel: str
    since: int | None = None
    limit: int = -1
    reverse: bool = False


@dataclass(frozen=True, repr=False)
class Remove(Action):
    """A shard removes what is kept."""

    shard: int
    channel: str


@dataclass(frozen=True, repr=False)
class Trim(Action):
    """All but the newest are gone: behind the hub's back."""

    channel: str
    down_to: int = 0


@dataclass(frozen=True, repr=False)
class Forget(Action):
    """Epoch and offset are gone; ``with_stream``: what is kept too; ``with_keys``: all, of all channels."""

    channel: str
    with_stream: bool = False
    with_keys: bool = False


@dataclass(frozen=True, repr=False)
class Drop(Action):
    """The next kept messages of a channel do not reach a shard, though its link is whole."""

    shard: int
    channel: str
    times: int = 1


@dataclass(frozen=True, repr=False)
class Renew(Action):
    """A shard stops, and a new one, that has subscribed nothing, starts in its place."""

    shard: int


@dataclass(frozen=True, repr=False)
class Hold(Action):
    """A shard asks for no more publications, until ``Resume``."""

    shard: int


@dataclass(frozen=True, repr=False)
class Resume(Action):
    """A shard takes publications again."""

    shard: int


@dataclass(frozen=True, repr=False)
class Away(Action):
    """The server is away from all shards, until ``Back``: all connections break."""


@dataclass(frozen=True, repr=False)
class Back(Action):
    """The server is back."""


@dataclass(frozen=True, repr=False)
class Turns(Action):
    """The reactor turns."""

    times: int = 1


@dataclass(frozen=True, repr=False)
class Quiet(Action):
    """All that has begun comes to its end; not while something is taken away."""


@dataclass(frozen=True, repr=False)
class Pass(Action):
    """In memory: time passes."""

    seconds: float


@dataclass(frozen=True, repr=False)
class Elsewhere(Action):
    """In memory: a shard publishes from which the exchange is never away."""

    channel: str
    is_kept: bool = True


@dataclass(frozen=True, repr=False)
class Cut(Action):
    """On Redis: a connection breaks, ``commands`` or ``hearing``; ``is_own``: the shard has given it up."""

    shard: int
    link: str
    is_own: bool = False


@dataclass(frozen=True, repr=False)
class Delay(Action):
    """On Redis: what comes in on a connection, or on the next one, is on its way until ``Deliver``."""

    shard: int
    link: str


@dataclass(frozen=True, repr=False)
class Deliver(Action):
    """On Redis: it arrives."""

    shard: int
    link: str


@dataclass(frozen=True, repr=False)
class Lose(Action):
    """On Redis: what goes ``out`` on a connection, or comes ``in``, is lost after so many bytes more."""

    shard: int
    link: str
    way: str
    after: int = 0


@dataclass(frozen=True, repr=False)
class Kill(Action):
    """On Redis: the server is killed and started again; ``is_away``: it is not reached until ``Back``."""

    is_away: bool = False


@dataclass(frozen=True, repr=False)
class KillClients(Action):
    """On Redis: the server closes all connections of a kind, ``normal`` or ``pubsub``."""

    kind: str


@dataclass(frozen=True, repr=False)
class FlushScripts(Action):
    """On Redis: the server forgets its scripts."""


# -- shards --------------------------------------------------------------------------------------------


class _Member:
    """One shard of a run."""

    def __init__(self, driver: Driver, number: int, shard: Shard) -> None:
        self.driver = driver
        self.number = number
        self.shard = shard
        self.hub: Any = shard.hub
        self.is_started = False
        self.is_stopped = False
        self.is_held = False
        self.rounds: Counter[str] = Counter()
        """By channel: how often it was given up, so that an answer from before is known as one."""
        self.drops: Counter[str] = Counter()
        """By channel: how many messages more do not arrive."""
        self.deaf_to: set[str] = set()
        """Channels of which messages have not arrived."""
        self.repaired = 0
        """How many came from the stream so far, as the hub counts."""
        self.wires: dict[str, _Wire] = {}
        """The connections by their links."""
        self.delays: set[str] = set()
        """Links that have no connection, and are slow when they have."""
        self.lost_at: float | None = None
        """Since then publications without a place may be lost, and it was not told so yet."""
        self.waits_since = (0, 0.0)
        """In memory: when the first came of what is not handed over, by the model's clock and the hub's."""
        shard.receiver = _Witness(self)

    @property
    def is_delayed(self) -> bool:
        """Something that comes in waits."""
        return bool(self.delays) or any(wire.is_delayed for wire in self.wires.values())

    def deliver(self, link: str) -> None:
        """Let it come in, and what will."""
        self.delays.discard(link)
        if link in self.wires:
            self.wires[link].deliver()

    def may_lose(self, since: int, seconds: float) -> None:
        """What came after the model's ``since``, at the clock's ``seconds``, may be lost."""
        if self.lost_at is None and not self.is_stopped:
            self.lost_at = seconds
            self.driver.model.may_lose(self.number, since)

    def is_dropped(self, channel: str, event: Event) -> bool:
        """It is lost on its way."""
        if self.drops[channel] and isinstance(event, Publication) and event.offset:
            self.drops[channel] -= 1
            return True
        return False


class _Witness(Recorder):
    """Tells the model what a shard is given."""

    def __init__(self, member: _Member) -> None:
        super().__init__()
        self._member = member

    def received(self, channel: str, event: Event) -> None:
        member = self._member
        is_read = member.driver.is_read(member, channel, event)
        member.driver.model.heard(member.number, channel, event, is_read=is_read)

    def missed(self, seconds: float) -> None:
        member = self._member
        driver = member.driver
        driver.model.told_of_loss(member.number)
        if member.lost_at is not None:
            real = driver.seconds() - member.lost_at
            if seconds < real - driver.close_seconds:
                driver.model.say(f"shard {member.number} is told of {seconds:.3f} s, and it was {real:.3f}")
            member.lost_at = None


# -- the driver ----------------------------------------------------------------------------------------


class Driver:
    """Of one run."""

    close_seconds = 0.0
    """What is closer together was at the same time."""

    def __init__(self, **how: Any) -> None:
        self.model = Model(SIZES, self.peek, **how)
        self.members: list[_Member] = []
        self.is_away = False
        self._numbers = 0
        self._asked: Counter[str] = Counter()
        self._unsure_removals: list[str] = []
        """Of these channels; not answered."""

    async def run(self, actions: Sequence[Action]) -> None:
        """Do it all.

        :raises AssertionError: the hub did not keep its promise; with the actions, and what happened.
        """
        try:
            for slot in range(SHARDS):
                self.members.append(self.member())
                await self.start(self.members[slot])
            for action in actions:
                self.model.story.append(f"-- {action!r}")
                await self.act(action)
                if self.model.wrong:
                    break
            else:
                await self.settle()
        finally:
            await self.close()
        if self.model.wrong:
            story = "\n".join(self.model.story[-STORY_LINES:])
            raise AssertionError(f"{self.model.wrong}\n\n[\n{shown(actions)}\n]\n\n{story}")

    # -- what the hubs are made of ---------------------------------------------------------------------

    def seconds(self) -> float:
        """By the clock of the hubs."""
        raise NotImplementedError

    def peek(self, channel: str) -> Kept | None:
        """What the server has."""
        raise NotImplementedError

    def make_shard(self) -> Shard:
        """Not started."""
        raise NotImplementedError

    async def turn(self) -> None:
        """Let the reactor turn once."""
        raise NotImplementedError

    async def quiet(self) -> None:
        """Let everything come to its end."""
        raise NotImplementedError

    def away(self) -> None:
        """See ``Away``."""
        raise NotImplementedError

    def back(self) -> None:
        """See ``Back``."""
        raise NotImplementedError

    def trim(self, channel: str, down_to: int) -> None:
        """See ``Trim``."""
        raise NotImplementedError

    def forget(self, channel: str, with_stream: bool, with_keys: bool) -> None:
        """See ``Forget``."""
        raise NotImplementedError

    async def act_here(self, action: Action) -> None:
        """An action of this kind of hub alone."""
        raise NotImplementedError

    def is_read(self, member: _Member, channel: str, event: Event) -> bool:
        """What a shard is handed comes from the stream, and perhaps not at its place."""
        raise NotImplementedError

    # -- a run -----------------------------------------------------------------------------------------

    def member(self) -> _Member:
        """A new shard, not started."""
        member = _Member(self, self._numbers, self.make_shard())
        self._numbers += 1
        return member

    def start(self, member: _Member) -> Deferred[None]:
        """Start it; this never fails."""

        def started(_: None) -> None:
            member.is_started = True

        return self._pending("start", member.hub.start(member.shard.receiver).addCallback(started), member)

    def _pending(self, what: str, answer: Deferred[Any], member: _Member) -> Deferred[None]:
        """Count it until it is answered; it may fail only if the shard has stopped."""
        self._asked[what] += 1

        def failed(failure: Failure) -> None:
            failure.trap(HubUnavailable)
            if not member.is_stopped:
                self.model.say(f"shard {member.number}, {what}: {failure.getErrorMessage()}")

        answer.addErrback(failed)
        answer.addBoth(self._answered, what)
        return answer

    def _answered(self, outcome: Any, what: str) -> None:
        self._asked[what] -= 1
        if isinstance(outcome, Failure):
            self.model.say(f"{what}: {outcome.getTraceback()}")

    @property
    def is_whole(self) -> bool:
        """Nothing is taken away."""
        return not self.is_away and not any(member.is_held or member.is_delayed for member in self.members)

    def lacks(self) -> str:
        """What has not come to its end yet."""
        waiting = +self._asked
        if waiting:
            return f"not answered: {dict(waiting)}"
        for member in self.members:
            if not member.hub.is_live:
                return f"shard {member.number} is not live"
        return self.model.lacks()

    async def settle(self) -> None:
        """Give everything back, wait for it, and let the model judge."""
        self.model.story.append("-- the end")
        self.back()
        for member in self.members:
            member.drops.clear()
            self._resume(member)
            for link in ("commands", "hearing"):
                member.deliver(link)
        await self._quiet()
        for is_kept in (False, True):
            for channel in SIZES:
                self._publish(self.members[0], Publish(0, channel, is_kept=is_kept))
            await self._quiet()
        self.model.settled()
        for member in self.members:
            counters = member.hub.counters
            if counters.journal_publications or counters.journal_bytes:
                self.model.say(f"the journal of shard {member.number} is not empty")

    async def _quiet(self) -> None:
        await self.quiet()
        while self._unsure_removals:
            self.model.ends_trimming(self._unsure_removals.pop(), is_done=True)

    async def close(self) -> None:
        """Stop all shards."""
        for member in self.members:
            self._leave(member)
        await gatherResults([member.hub.stop() for member in self.members])

    async def act(self, action: Action) -> None:
        """Do one thing."""
        match action:
            case Publish():
                self._publish(self.members[action.shard], action)
            case Subscribe():
                self._subscribe(self.members[action.shard], action.channel, action.is_followed)
            case Unsubscribe():
                member = self.members[action.shard]
                member.rounds[action.channel] += 1
                self.model.unsubscribes(member.number, action.channel)
                member.hub.unsubscribe(action.channel)
            case Read():
                self._read(self.members[action.shard], action)
            case Remove():
                self._remove(self.members[action.shard], action.channel)
            case Trim():
                self.trim(action.channel, action.down_to)
            case Forget():
                self.forget(action.channel, action.with_stream, action.with_keys)
            case Drop():
                member = self.members[action.shard]
                self.model.deafens(member.number, action.channel)
                member.deaf_to.add(action.channel)
                member.drops[action.channel] += action.times
            case Renew():
                self.renew(action.shard)
            case Hold():
                member = self.members[action.shard]
                member.is_held = True
                member.hub.pause()
            case Resume():
                self._resume(self.members[action.shard])
            case Away():
                self.away()
            case Back():
                self.back()
            case Turns():
                for _ in range(action.times):
                    await self.turn()
            case Quiet():
                if self.is_whole:
                    await self._quiet()
            case _:
                await self.act_here(action)

    # -- calls of the hub ------------------------------------------------------------------------------

    def _publish(self, member: _Member, action: Publish) -> None:
        version = action.version if action.is_kept else 0
        for _ in range(action.times):
            attempt = self.model.publishes(
                action.channel, member.number, is_kept=action.is_kept, key=action.key, version=version
            )
            history = HISTORIES[action.channel] if action.is_kept else None
            options = PublishOptions(history=history, idempotency_key=action.key, version=version)
            began = self.seconds()
            answer = member.hub.publish(action.channel, attempt.data, Format.TEXT, 0, options)
            answer.addCallbacks(
                lambda position, attempt=attempt: self.model.acknowledged(attempt, position),
                self._not_published,
                errbackArgs=(attempt, member, began),
            )
            self._pending("publish", answer, member)

    def _not_published(self, failure: Failure, attempt: Attempt, member: _Member, began: float) -> None:
        is_full = failure.check(JournalFull) is not None
        self.model.failed(attempt, is_unknown=not is_full)
        is_late = self.seconds() >= began + PUBLISH_SECONDS - 0.01
        if not (failure.check(HubUnavailable) and (is_full or is_late or member.is_stopped)):
            self.model.say(f"{attempt.data!r} has failed: {failure.getErrorMessage()}")

    def _subscribe(self, member: _Member, channel: str, is_followed: bool) -> None:
        if not member.is_started:
            return  # a hub on Redis may miss that it is live when it subscribes before
        rounds = member.rounds[channel]

        def answered(position: Position | None) -> None:
            if is_followed != (position is not None):
                self.model.say(f"shard {member.number} has subscribed {channel} and is given {position}")
            if rounds == member.rounds[channel] and not member.is_stopped:
                self.model.subscribed(member.number, channel, position)

        def failed(failure: Failure) -> None:
            failure.trap(HubUnavailable)
            if rounds == member.rounds[channel]:
                failure.raiseException()

        answer = member.hub.subscribe(channel, HISTORIES[channel] if is_followed else None)
        self._pending("subscribe", answer.addCallbacks(answered, failed), member)

    def _read(self, member: _Member, action: Read) -> None:
        channel, limit, reverse = action.channel, action.limit, action.reverse
        since = None if action.since is None else Position("", action.since)
        asked = self.model.asks()
        answer = member.hub.history(channel, HISTORIES[channel], since=since, limit=limit, reverse=reverse)
        answer.addCallbacks(
            lambda stream: self.model.read(asked, channel, since, limit, reverse, stream),
            lambda failure: failure.trap(HubUnavailable) and None,
        )
        self._pending("read", answer, member)

    def _remove(self, member: _Member, channel: str) -> None:
        self.model.begins_to_trim(channel)
        answer = member.hub.remove_history(channel)
        is_asked = not isinstance(answer.result if answer.called else None, Failure)

        def done(outcome: Any) -> None:
            if isinstance(outcome, Failure):
                outcome.trap(HubUnavailable)
                if is_asked:
                    self._unsure_removals.append(channel)
                    return
            self.model.ends_trimming(channel, is_done=is_asked)

        self._pending("remove", answer.addBoth(done), member)

    def _resume(self, member: _Member) -> None:
        member.is_held = False
        member.hub.resume()

    def _leave(self, member: _Member) -> None:
        if not member.is_stopped:
            member.is_stopped = True
            self.model.leaves(member.number)

    def renew(self, slot: int) -> None:
        """See ``Renew``."""
        old = self.members[slot]
        self._leave(old)
        self._pending("stop", old.hub.stop(), old)
        self.members[slot] = self.member()
        self.start(self.members[slot])


# -- in memory -----------------------------------------------------------------------------------------


class MemoryDriver(Driver):
    """Hubs of one exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.exchange = Exchange(self.clock, publish_seconds=PUBLISH_SECONDS)

    def seconds(self) -> float:
        return self.clock.seconds()

    @property
    def _now(self) -> tuple[int, float]:
        return self.model.now, self.seconds()

    def _kept(self, channel: str, seconds: float = 0.0) -> tuple[Any, bool]:
        """What the exchange has, so many seconds from now, and whether its stream is still kept."""
        kept = self.exchange.streams._kept.get(channel)
        at = self.clock.seconds() + seconds
        if kept is None or kept.until <= at:
            return None, False
        return kept, kept.stream_until > at

    def peek(self, channel: str) -> Kept | None:
        kept, is_kept = self._kept(channel)
        if kept is None:
            return None
        entries = [(each.offset, each.data) for each in kept.entries] if is_kept else []
        return Kept(kept.position, entries)

    def make_shard(self) -> Shard:
        identity = this_process("test")
        return Shard(MemoryHub(self.exchange, identity.incarnation), identity)

    def member(self) -> _Member:
        member = super().member()
        inbox = member.hub.inbox
        arrive = inbox.arrive

        def arrives(channel: str, event: Event) -> None:
            if not inbox._waiting:
                member.waits_since = self._now
            if not member.is_dropped(channel, event):
                arrive(channel, event)

        inbox.arrive = arrives
        return member

    async def turn(self) -> None:
        self.clock.advance(0)

    async def quiet(self) -> None:
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)

    def away(self) -> None:
        if not self.is_away:
            self.is_away = True
            for member in self.members:
                member.may_lose(*(member.waits_since if member.hub.inbox._waiting else self._now))
            self.exchange.cut()

    def back(self) -> None:
        if self.is_away:
            self.is_away = False
            for member in self.members:
                member.waits_since = self._now
            self.exchange.restore()

    def renew(self, slot: int) -> None:
        if not self.is_away:  # it would not start
            super().renew(slot)

    def trim(self, channel: str, down_to: int) -> None:
        kept, _ = self._kept(channel)
        if kept is not None:
            while len(kept.entries) > down_to:
                kept.entries.popleft()
            self.model.trims(channel, down_to=down_to)

    def forget(self, channel: str, with_stream: bool, with_keys: bool) -> None:
        for name in SIZES if with_keys else (channel,):
            kept, _ = self._kept(name)
            if kept is not None:
                self.model.forgets(name, kept.epoch)
                kept.until = self.clock.seconds()
        if with_keys:
            self.exchange.streams._results.clear()
            self.model.forgets_keys()

    def is_read(self, member: _Member, channel: str, event: Event) -> bool:
        # What fills a hole that an outage has made is put where the hole is.
        return channel in member.deaf_to and isinstance(event, Publication) and event.offset > 0

    async def act_here(self, action: Action) -> None:
        match action:
            case Pass():
                self._pass(action.seconds)
            case Elsewhere():
                attempt = self.model.publishes(action.channel, -1, is_kept=action.is_kept)
                history = HISTORIES[action.channel] if action.is_kept else None
                publication = Publication(attempt.data, Format.TEXT, b"elsewher", 0)
                position = self.exchange.take(action.channel, publication, PublishOptions(history=history))
                self.model.acknowledged(attempt, position)

    def _pass(self, seconds: float) -> None:
        for channel in SIZES:
            kept, was_kept = self._kept(channel)
            later, is_kept = self._kept(channel, seconds)
            if kept is not None and later is None:
                self.model.forgets(channel, kept.epoch)
            elif was_kept and not is_kept:
                self.model.trims(channel)
        if any(until <= self.seconds() + seconds for until, _ in self.exchange.streams._results.values()):
            self.model.forgets_keys()
        self.clock.advance(seconds)

    async def close(self) -> None:
        await super().close()
        if self.clock.getDelayedCalls():
            self.model.say(f"left over: {self.clock.getDelayedCalls()}")


# -- on Redis ------------------------------------------------------------------------------------------

LOOK = """
local known = redis.call('HMGET', KEYS[1], 'e', 's')
return {known[1], known[2], redis.call('XRANGE', KEYS[2], '-', '+')}
"""

FORGET = """
local epochs = {}
for i, meta in ipairs(KEYS) do
  epochs[i] = redis.call('HGET', meta, 'e') or ''
end
redis.call(unpack(ARGV))
return epochs
"""
"""In one step, lest an epoch comes and goes that nobody has seen here."""

KEYS = Keys("spread")

SEARCHED = 64
"""So many publications ``publish.lua`` looks through for the first try of one."""

CHANNELS = {KEYS.channel(channel): channel for channel in SIZES}


class _Wire(ProtocolWrapper):
    """One connection of a shard to the server."""

    def __init__(self, factory: Any, wrapped: Any, member: _Member, link: str) -> None:
        super().__init__(factory, wrapped)
        self.link = link
        self._member = member
        self._passes: dict[str, int] = {}
        self._delayed: list[bytes] | None = None
        # When bytes came lately, by the reactor's clock and the model's.
        self._heard: deque[tuple[float, int]] = deque()

    def cut(self, *, is_own: bool) -> None:
        """Break it; ``is_own``: from this side."""
        if is_own:
            self.wrappedProtocol._protocol.cut("given up")
        else:
            self.abortConnection()

    def lose(self, way: str, after: int) -> None:
        """What goes this way is lost, from the byte after so many on."""
        self._passes.setdefault(way, after)

    @property
    def is_delayed(self) -> bool:
        """What comes in waits."""
        return self._delayed is not None

    def delay(self) -> None:
        """Let what comes in wait."""
        self._delayed = self._delayed or []

    def deliver(self) -> None:
        """Let it come in."""
        delayed, self._delayed = self._delayed or [], None
        for data in delayed:
            self.dataReceived(data)

    def _passing(self, way: str, data: bytes) -> bytes:
        if way not in self._passes:
            return data
        passing = data[: self._passes[way]]
        self._passes[way] -= len(passing)
        return passing

    def connectionMade(self) -> None:
        self._note()
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        if self._delayed is not None:
            self._delayed.append(data)
            return
        data = self._passing("in", data)
        if data:
            self._note()
            super().dataReceived(data)

    def write(self, data: bytes) -> None:
        data = self._passing("out", data)
        if data:
            super().write(data)

    def _note(self) -> None:
        self._heard.append((reactor.seconds(), self._member.driver.model.now))
        # Two connections are read in any order: what was acknowledged on the other one shortly before the
        # last bytes came here may still have been on its way.
        while len(self._heard) > 1 and self._heard[1][0] < self._heard[-1][0] - RedisDriver.close_seconds:
            self._heard.popleft()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        member = self._member
        if member.wires.get(self.link) is self:
            del member.wires[self.link]
        if self.link == "hearing" and member.hub.server.hearing.protocol is self.wrappedProtocol._protocol:
            member.may_lose(self._heard[0][1], self._heard[-1][0])
        super().connectionLost(reason)


class _Wiring(WrappingFactory):
    """Makes the connections of a shard."""

    noisy = False

    def __init__(self, wrapped: Any, member: _Member) -> None:
        super().__init__(wrapped)
        self._member = member

    def buildProtocol(self, addr: Any) -> _Wire | None:
        wrapped = self.wrappedFactory.buildProtocol(addr)
        if wrapped is None or wrapped._protocol is None:
            return None
        link = "hearing" if isinstance(wrapped._protocol, SubscriberProtocol) else "commands"
        member = self._member
        wire = member.wires[link] = _Wire(self, wrapped, member, link)
        if link in member.delays:
            member.delays.discard(link)
            wire.delay()
        return wire


class _Way:
    """The endpoint of a shard."""

    def __init__(self, driver: RedisDriver) -> None:
        self._driver = driver
        self.member: _Member | None = None

    def connect(self, factory: Any) -> Deferred[Any]:
        if self._driver.is_away:
            return fail(ConnectionRefusedError("away"))
        assert self.member is not None
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self._driver.server.port, timeout=5)
        connected = endpoint.connect(_Wiring(factory, self.member))
        return connected.addCallback(lambda wire: wire.wrappedProtocol)


class RedisDriver(Driver):
    """Hubs on one server.

    :param server: with ``CONFIGURATION``; it forgets what it knew.
    :param settle_seconds: what is missing after that is missing for good.
    :param excuses_reads: what is read from the stream comes on another link than what is not kept, and so not
        always at its place between them.
    :param searched: what was tried again behind more than this may be told another position.
    """

    CONFIGURATION = ("appendonly yes", "appendfsync always")

    close_seconds = 0.2  # this process may have stood still in between

    def __init__(
        self,
        server: Valkey,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        probe_seconds: float = 0.4,
        excuses_reads: bool = True,
        searched: int = SEARCHED,
    ) -> None:
        super().__init__(searched=searched)
        self._probe_seconds = probe_seconds
        self._excuses_reads = excuses_reads
        self.server = server
        self._settle_seconds = settle_seconds
        server.command("FLUSHALL")

    def seconds(self) -> float:
        return float(reactor.seconds())

    def peek(self, channel: str) -> Kept | None:
        reply = self.server.command("EVAL", LOOK, 2, KEYS.meta(channel), KEYS.stream(channel))
        epoch, top, entries = reply
        if epoch is None or top is None:
            return None
        offsets = [int(entry.split(b"-")[0]) for entry, _ in entries]
        data = [unpack(found[1])[2].data for _, found in entries]
        return Kept(Position(epoch.decode(), int(top)), list(zip(offsets, data, strict=True)))

    def make_shard(self) -> Shard:
        self._way = _Way(self)
        return redis_shard(
            self.server.url,
            endpoint=self._way,
            publish_seconds=PUBLISH_SECONDS,
            start_seconds=SETTLE_SECONDS,
            linger_seconds=0.05,
            reply_seconds=0.6,
            probe_seconds=self._probe_seconds,
            position_check_seconds=0.3,
        )

    def member(self) -> _Member:
        member = super().member()
        self._way.member = member
        return member

    async def turn(self) -> None:
        await pause(0.001)

    async def quiet(self) -> None:
        try:
            await eventually(lambda: self.model.wrong or not self.lacks(), self._settle_seconds)
        except AssertionError:
            self.model.say(self.lacks())

    def away(self) -> None:
        self.is_away = True
        for member in self.members:
            for wire in list(member.wires.values()):
                wire.abortConnection()

    def back(self) -> None:
        self.is_away = False

    def trim(self, channel: str, down_to: int) -> None:
        key = KEYS.stream(channel)
        if down_to:
            self.server.command("XTRIM", key, "MAXLEN", down_to)
        else:
            self.server.command("DEL", key)
        self.model.trims(channel, down_to=down_to)

    def forget(self, channel: str, with_stream: bool, with_keys: bool) -> None:
        names = list(SIZES) if with_keys else [channel]
        metas = [KEYS.meta(name) for name in names]
        command = [b"DEL", *metas, KEYS.stream(channel)] if with_stream else [b"DEL", *metas]
        if with_keys:
            command = [b"FLUSHALL"]
        epochs = self.server.command("EVAL", FORGET, len(metas), *metas, *command)
        for name, epoch in zip(names, epochs, strict=True):
            self.model.forgets(name, epoch.decode())
        if with_keys:
            self.model.forgets_keys()

    def start(self, member: _Member) -> Deferred[None]:
        started = super().start(member)
        subscriptions = member.hub.server.subscriptions
        hear: Callable[[bytes, bytes], None] = subscriptions.message

        def message(key: bytes, payload: bytes) -> None:
            channel = CHANNELS.get(key)
            if channel is not None:
                publication = unpack(payload)[2]
                if member.is_dropped(channel, publication):
                    return
                self.model.arrives(member.number, channel, publication.data)
            hear(key, payload)

        subscriptions.message = message
        return started

    def is_read(self, member: _Member, channel: str, event: Event) -> bool:
        before, member.repaired = member.repaired, member.hub.counters.repaired
        return self._excuses_reads and member.repaired > before

    async def act_here(self, action: Action) -> None:
        match action:
            case Cut() | Lose() | Delay() | Deliver():
                self._to_link(self.members[action.shard], action)
            case Kill():
                self.server.kill()
                self.is_away = self.is_away or action.is_away
                self.server.start()
            case KillClients():
                self.server.command("CLIENT", "KILL", "TYPE", action.kind)
            case FlushScripts():
                self.model.sends_back()
                self.server.command("SCRIPT", "FLUSH")

    def _to_link(self, member: _Member, action: Cut | Lose | Delay | Deliver) -> None:
        wire = member.wires.get(action.link)
        match action:
            case Cut() if wire is not None:
                wire.cut(is_own=action.is_own)
            case Lose() if wire is not None:
                wire.lose(action.way, action.after)
            case Delay() if wire is not None:
                wire.delay()
            case Delay():
                member.delays.add(action.link)
            case Deliver():
                member.deliver(action.link)
