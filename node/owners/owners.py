"""The stateful channels of a shard, put together: what the app's host, and other shards, see of them.

``start`` when the app runs; ``retire`` before the shard stops: others own all from then on, while clients are
still here; ``stop`` when they have gone.

Each shard knows of each other one that lives what its app looks after; it has asked (``Hello``), and tells
anew when an update has changed its own part. Until it has asked all that live, it owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec
from prometheus_client.core import Metric
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.errors import HubError
from spread.hub.reactor import Clock, Timer
from spread.node import codes
from spread.node.app.data import decoded, encoded, optional
from spread.node.control import ControlFailed, RelayHandler
from spread.node.owners import wire
from spread.node.owners.counters import OwnersCounters
from spread.node.owners.desk import Desk, Shapes
from spread.node.owners.gate import Gate
from spread.node.owners.holding import HUB_SECONDS, RELEASE_SECONDS, Holding, State
from spread.node.owners.live import Live
from spread.node.owners.metrics import families
from spread.node.owners.owned import Owned, shapes_of
from spread.node.owners.places import Places
from spread.node.owners.reports import Reports
from spread.node.owners.routes import Routes
from spread.node.owners.running import Successor
from spread.node.owners.surroundings import Host, Hub, Limits, Surroundings
from spread.node.owners.wire import (
    Batch,
    Bye,
    Call,
    Hello,
    Offer,
    Outcome,
    Outcomes,
    Release,
    Released,
    Report,
    Reported,
    Row,
)
from spread.node.pattern import BadPattern, matching
from spread.node.session.shared import Refused

__all__ = ["Owners", "Prepared"]

GREET_SECONDS = 1.0
"""So long a shard waits when it starts, for those that live to say what they look after; then it begins."""

AGAIN_SECONDS = 0.2
"""After this time a shard that has not answered is asked again."""

RETIRE_SECONDS = 2.0
"""So long the objects of a shard that stops may take to be handed over."""

RETIRE_OBJECT_SECONDS = 0.001
"""So much longer for each of them."""

RETIRE_MORE_SECONDS = 8.0
"""But no longer than that; service managers do not wait for ever."""

OPENING_MAX = 32
"""Channels that ask the hub at a time, while they are opened: 10 ms of work, about."""

QUIET_SECONDS = 2.0
"""So long an update waits for commands that are under way."""

OUTCOMES_MAX_BYTES = 256 << 10
"""Of what is told of commands at a time; the rest follows."""

RESULT_MAX_BYTES = 512 << 10
"""Of the result of one command."""

T = TypeVar("T")

log = Logger("spread.node.owners")


class Relays(Protocol):
    """``control.Control``, as far as it is needed here."""

    def on(self, kind: str, handler: RelayHandler) -> None: ...
    def relay(self, kind: str, body: bytes, shard: str = "") -> Deferred[list[bytes]]: ...


class Someone(Protocol):
    """``app.Client``, likewise."""

    @property
    def id(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def info(self) -> Any: ...
    @property
    def channels(self) -> Any: ...


class Everybody(Host, Protocol):
    """Who runs the app, and knows its clients."""

    def clients(self) -> Iterator[Any]: ...


class Prepared(NamedTuple):
    """The objects of the app that runs, as another one will have them."""

    shapes: Shapes
    offer: Offer
    made: list[tuple[Holding, Successor]]


class Owners:
    """See the line at the top.

    :param steady: seconds by a clock that is never set.
    :param shard: the incarnation of this one.
    """

    def __init__(
        self,
        clock: Clock,
        steady: Callable[[], float],
        limits: Limits,
        *,
        hub: Hub,
        host: Everybody,
        relays: Relays,
        shard: str,
    ) -> None:
        self.counters = OwnersCounters()
        self.shard = shard
        self._clock = clock
        self._host = host
        self._relays = relays
        self._live = Live(clock, steady, hub, shard, self._lives)
        self._places = Places()
        around = Surroundings(
            clock=clock,
            steady=steady,
            hub=hub,
            host=host,
            live=self._live,
            counters=self.counters,
            limits=limits,
            shard=shard,
            gate=Gate(OPENING_MAX),
            release=self._release,
        )
        self._desk = Desk(around, self._places, self._knows, self._greet_anew)
        self._reports = Reports(clock, self._places, self._tell, self._told)
        self._routes = Routes(
            around,
            self._places,
            self._reports.knows,
            partial(self._desk.call, shard),
            self._send,
            self._reports.doubt,
        )
        self._offer = Offer()
        self._offers: dict[str, Offer] = {}
        self._patterns: frozenset[str] = frozenset()
        self._met: set[str] = set()
        self._greeting: set[str] = set()
        self._greet_again: Timer | None = None
        self._begin_timer: Timer | None = None
        self._gaps = 0
        self._anews = 0
        self._has_begun = False
        self._is_stopped = False
        self._done: dict[str, list[Outcome]] = {}
        self._done_turn: Timer | None = None
        relays.on(wire.KIND, self._asked)

    # -- for the host: host.Objects ----------------------------------------------------------------------

    def command(self, client: Someone, channel: str, command: str, data: bytes) -> Deferred[bytes]:
        """A client calls a command.

        :raises Refused: at once, or as a failure; as which there may be ``Ended``, too.
        """
        # While the last shards of all stop there is no owner, and the method is there all the same.
        is_known = self._places.of(channel).is_owned or self._desk.shapes.of(channel) is not None
        if not is_known and self._has_begun:
            raise Refused(codes.METHOD_NOT_FOUND)
        if channel not in client.channels:
            raise Refused(codes.PERMISSION_DENIED)
        # Without what is said of it: its owner has heard that, and it may be long.
        return self._routes.call(channel, command, Row(client.id, client.user), data)

    def call(self, channel: str, command: str, data: Any) -> Deferred[Any]:
        """The app calls one.

        :raises LookupError: at once, if no app has objects for this channel.
        """
        if not self._places.of(channel).is_owned and self._has_begun:
            raise LookupError(f"{channel!r} has no object; see App.objects")
        called = self._routes.call(channel, command, None, encoded(data, "call"))
        return called.addCallback(decoded)

    def entered(self, client: Someone, channel: str) -> None:
        """A client has become a member of a channel, whichever."""
        if self._places.of(channel).ranked:
            self._reports.joined(channel, _row(client))

    def left(self, client: Someone, channel: str) -> None:
        """It is one no more."""
        self._reports.left(channel, client.id)

    # -- updates -----------------------------------------------------------------------------------------

    def quiet(self) -> Deferred[None]:
        """Fires when no command is under way here, or after ``QUIET_SECONDS``. Never fails.

        Until ``resume`` commands to objects that were busy wait. Those to others do not: a slow command holds
        up its own channel alone.
        """
        return Deferred.fromCoroutine(self._quiet())

    async def _quiet(self) -> None:
        until = self._clock.seconds() + QUIET_SECONDS
        while busy := [holding for holding in self._desk.holdings if holding.is_busy]:
            idle = [holding.pause() for holding in busy]
            if not await self._all_within(idle, max(0.0, until - self._clock.seconds())):
                log.warn("commands of {channel} go on in the old object", channel=busy[0].channel)
                return

    async def _all_within(self, answers: list[Deferred[Any]], seconds: float) -> bool:
        """``False``: there was no time. They are not cancelled, as a ``DeferredList`` would."""
        done: Deferred[None] = Deferred()

        def all_are(_: object) -> None:
            if not done.called:
                done.callback(None)

        DeferredList(answers).addCallback(all_are)
        try:
            await done.addTimeout(seconds, cast(Any, self._clock))
        except TimeoutError:
            return False
        return True

    def resume(self) -> None:
        """Commands that ``quiet`` has held up go on. Idempotent."""
        for holding in self._desk.holdings:
            holding.resume()

    def prepare(self, app: Any) -> Prepared:
        """The objects as ``app`` will have them. Changes nothing.

        :raises Exception: one of them cannot be handed over, or the app is wrong.
        """
        shapes = Shapes(shapes_of(app))
        if isinstance(app.watch, str):
            raise ValueError(f"{type(app).__name__}.watch must be several patterns, not one text")
        watch = frozenset(app.watch)
        for pattern in watch:
            try:
                matching(pattern)
            except BadPattern as error:
                raise ValueError(f"{type(app).__name__}.watch: {pattern!r}: {error}") from None
        made: list[tuple[Holding, Successor]] = []
        for holding in self._desk.holdings:
            shape = shapes.of(holding.channel)
            if shape is not None and holding.running is not None and holding.state is State.OPEN:
                try:
                    made.append((holding, holding.running.successor(shape, app)))
                except Exception as error:
                    raise RuntimeError(f"the object of {holding.channel}: {error!r}") from error
        return Prepared(shapes, Offer(shapes.patterns, watch), made)

    def swap(self, app: Any, prepared: Prepared) -> None:
        """From now on objects are those of ``app``. Never fails."""
        self._desk.shapes = prepared.shapes
        for holding, successor in prepared.made:
            if holding.running is not None and holding.state is State.OPEN:
                holding.running.succeed(successor)
        if prepared.offer != self._offer:
            self._offer = prepared.offer
            self._greet(self._met, is_first=False)
        self._place()
        self._desk.review()

    # -- begin, and end ----------------------------------------------------------------------------------

    def start(self) -> None:
        """The app runs."""
        self._begin_timer = self._clock.callLater(GREET_SECONDS, self._begin)
        self._live.start()

    def _begin(self) -> None:
        if self._begin_timer is not None and self._begin_timer.active():
            self._begin_timer.cancel()
        self._begin_timer = None
        self._has_begun = True
        self._place()

    def retire(self) -> Deferred[None]:
        """Let others own all. Never fails, and takes a few seconds at most."""
        if self._is_stopped or not self._has_begun:
            return succeed(None)
        return Deferred.fromCoroutine(self._retire())

    async def _retire(self) -> None:
        self._offer = Offer()
        seconds = RETIRE_SECONDS + min(RETIRE_MORE_SECONDS, len(self._desk.holdings) * RETIRE_OBJECT_SECONDS)
        told: Deferred[Any] = DeferredList(self._greet(self._met, is_first=False))
        self._place()
        if not await self._all_within([told, self._desk.when_empty()], seconds):
            log.warn("{count} channels were not handed over", count=len(self._desk.holdings))

    def stop(self) -> Deferred[None]:
        """All clients have gone. Never fails. Idempotent."""
        if self._is_stopped:
            return succeed(None)
        self._is_stopped = True
        for timer in (self._greet_again, self._begin_timer, self._done_turn):
            if timer is not None and timer.active():
                timer.cancel()
        self._reports.stop()
        self._routes.stop()
        self._desk.stop()
        others = self._live.shards - {self.shard}
        return self._live.stop().addCallback(lambda _: self._say_bye(others))

    def _say_bye(self, others: Iterable[str]) -> None:
        for shard in others:
            self._ask(shard, Bye(), bytes).addErrback(_unheard)

    @property
    def objects(self) -> dict[str, Owned]:
        """Those that run here, by channel."""
        holdings = self._desk.holdings
        return {each.channel: each.running.object for each in holdings if each.running is not None}

    def metrics(self) -> Iterable[Metric]:
        """For Prometheus."""
        return families(self.counters, len(self._live.shards))

    # -- who is there ------------------------------------------------------------------------------------

    def _knows(self, shard: str) -> bool:
        if shard == self.shard or (shard in self._offers and shard in self._live.shards):
            return True
        self._live.refresh()
        return False

    def _lives(self) -> None:
        """Other shards live than before, or there was a gap."""
        live = self._live
        if live.gaps != self._gaps:
            self._gaps = live.gaps
            self.counters.suspensions += 1
            self._met.clear()
            self._desk.doubt()
        gone = (self._offers.keys() | self._met) - live.shards
        for shard in gone:
            self._offers.pop(shard, None)
            self._met.discard(shard)
        self._greet_new()
        self._place()
        for shard in gone:
            self._desk.drop(shard)
            self._routes.lost(shard)
        self._desk.look()

    def _greet_new(self) -> None:
        strangers = self._live.shards - self._met - self._greeting - {self.shard}
        self._greet(strangers, is_first=True)
        if not strangers and not self._greeting and not self._has_begun:
            self._begin()

    def _greet_anew(self, shards: set[str]) -> None:
        self._anews += 1
        self._met -= shards
        if self.shard in shards:
            self._reports.forget(self.shard)
        self._greet_new()

    def _greet(self, shards: Iterable[str], *, is_first: bool) -> list[Deferred[None]]:
        return [self._greet_one(shard, is_first) for shard in list(shards)]

    def _greet_one(self, shard: str, is_first: bool) -> Deferred[None]:
        self._greeting.add(shard)
        asked: Deferred[Any] = self._ask(shard, Hello(self._offer, is_first), Offer)
        told = self._offer, self._gaps, self._anews
        asked.addCallbacks(self._greeted, self._not_greeted, (shard, told), {}, (shard,))
        return asked.addErrback(lambda failure: log.failure("greeting a shard", failure))

    def _greeted(self, offer: Offer, shard: str, told: tuple[Offer, int, int]) -> None:
        self._greeting.discard(shard)
        if self._is_stopped or shard not in self._live.shards:
            return
        self._offers[shard] = offer
        if told == (self._offer, self._gaps, self._anews):
            self._met.add(shard)
        else:  # what it was told is true no more
            self._greet_new()
        if not self._has_begun:
            self._greet_new()
        self._place()

    def _not_greeted(self, failure: Failure, shard: str) -> None:
        self._greeting.discard(shard)
        self._met.discard(shard)
        _unheard(failure)
        if self._greet_again is None and not self._is_stopped:
            self._greet_again = self._clock.callLater(AGAIN_SECONDS, self._greet_once_more)

    def _greet_once_more(self) -> None:
        self._greet_again = None
        self._greet_new()

    def _place(self) -> None:
        """Let channels be where they belong."""
        if not self._has_begun or self._is_stopped:
            return
        offers = {shard: offer for shard, offer in self._offers.items() if shard in self._live.shards}
        offers[self.shard] = self._offer
        if not self._places.set(offers):
            return
        patterns = frozenset(pattern for offer in offers.values() for pattern in offer.objects | offer.watch)
        is_other = patterns != self._patterns
        self._patterns = patterns
        self._reports.review(self._everybody if is_other else None)
        self._desk.review()
        self._routes.pump()

    def _everybody(self) -> Iterator[tuple[str, Row]]:
        for client in self._host.clients():
            for channel in client.channels:
                if self._places.of(channel).ranked:
                    yield channel, _row(client)

    # -- what other shards are asked ---------------------------------------------------------------------

    def _ask(
        self, shard: str, question: wire.Question, type: type[T], seconds: float = HUB_SECONDS
    ) -> Deferred[T]:
        def answered(answers: list[bytes]) -> Any:
            return answers[0] if type is bytes else wire.decoded(answers[0], type)

        asked: Deferred[Any] = self._relays.relay(wire.KIND, wire.encoded(question), shard)
        return asked.addCallback(answered).addTimeout(seconds, cast(Any, self._clock))

    def _tell(self, shard: str, report: Report) -> Deferred[Reported]:
        if shard == self.shard:
            return succeed(self._desk.report(shard, report))
        return self._ask(shard, report, Reported)

    def _told(self) -> None:
        self._routes.pump()

    def _send(self, shard: str, batch: Batch) -> Deferred[Outcomes]:
        return self._ask(shard, batch, Outcomes)

    def _release(self, shard: str, channel: str) -> Deferred[bool]:
        asked = self._ask(shard, Release(channel), Released, RELEASE_SECONDS)
        return asked.addCallbacks(lambda released: released.is_free, _unheard).addCallback(bool)

    # -- what this one is asked --------------------------------------------------------------------------

    def _asked(self, origin: str, body: bytes) -> Deferred[bytes] | bytes:
        match wire.question(body):
            case Hello() as hello:
                return wire.encoded(self._hello(origin, hello))
            case Report() as report:
                return wire.encoded(self._desk.report(origin, report))
            case Batch() as batch:
                return wire.encoded(self._batch(origin, batch))
            case Outcomes() as outcomes:
                self._routes.settle(origin, outcomes)
            case Release() as release:
                answer = self._desk.release(release.channel)
                if isinstance(answer, Deferred):
                    return answer.addCallback(lambda is_free: wire.encoded(Released(is_free)))
                if not answer:
                    self._live.refresh()
                return wire.encoded(Released(answer))
            case Bye():
                self._live.forget(origin)
        return b""

    def _hello(self, origin: str, hello: Hello) -> Offer:
        if origin == self.shard:
            return self._offer
        if origin in self._live.shards:
            self._offers[origin] = hello.offer
        else:
            self._live.refresh()  # it will be greeted as soon as it is seen
        if hello.is_first:
            self._reports.forget(origin)
        self._place()
        return self._offer

    def _batch(self, origin: str, batch: Batch) -> Outcomes:
        outcomes: list[Outcome] = []
        room = OUTCOMES_MAX_BYTES
        away: set[str] = set()
        for call in batch.calls:
            outcome = self._call(origin, call, away)
            if isinstance(outcome, Deferred):
                outcome.addCallback(self._later, origin)
                outcome.addErrback(lambda failure: log.failure("a command", failure))
                continue
            outcome = _small(outcome)
            if room > 0:
                room -= len(outcome.data) + 32
                outcomes.append(outcome)
            else:
                self._later(outcome, origin)
        return Outcomes(outcomes)

    def _call(self, origin: str, call: Call, away: set[str]) -> Outcome | Deferred[Outcome]:
        if call.channel in away:  # what comes after it must not be done before it
            return Outcome(call.number, wire.Result.NOT_HERE)
        outcome = self._desk.call(origin, call)
        if isinstance(outcome, Outcome) and outcome.result is wire.Result.NOT_HERE:
            away.add(call.channel)
        return outcome

    def _later(self, outcome: Outcome, origin: str) -> None:
        self._done.setdefault(origin, []).append(_small(outcome))
        if self._done_turn is None and not self._is_stopped:
            self._done_turn = self._clock.callLater(0, self._tell_done)

    def _tell_done(self) -> None:
        self._done_turn = None
        done, self._done = self._done, {}
        for origin, outcomes in done.items():
            while outcomes:
                room, chunk = OUTCOMES_MAX_BYTES, list[Outcome]()
                while outcomes and room > 0:
                    outcome = outcomes.pop(0)
                    room -= len(outcome.data) + 32
                    chunk.append(outcome)
                self._ask(origin, Outcomes(chunk), bytes).addErrback(_unheard)


def _small(outcome: Outcome) -> Outcome:
    if len(outcome.data) <= RESULT_MAX_BYTES:
        return outcome
    message = f"{codes.LIMIT_EXCEEDED.message}: the result has {len(outcome.data)} bytes"
    return Outcome(outcome.number, wire.Result.REFUSED, code=codes.LIMIT_EXCEEDED.code, message=message)


def _row(client: Someone) -> Row:
    return Row(client.id, client.user, optional(client.info, "info"))


def _unheard(failure: Failure) -> None:
    """Another shard was not reached; who depends on that asks again."""
    failure.trap(HubError, ControlFailed, TimeoutError, CancelledError, ValueError, msgspec.MsgspecError)
    log.debug("another shard: {why}", why=failure.value)
