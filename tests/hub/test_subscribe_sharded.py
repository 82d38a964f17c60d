"""Subscriptions on a server of a cluster: a command for each channel; channels that are served elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.hub.api import History, HubCounters, Position, Publication, Stream
from spread.hub.dialect import SHARDED
from spread.hub.envelope import KIND_PUBLICATION, pack
from spread.hub.errors import HubRefused, HubUnavailable
from spread.hub.repair import Repair
from spread.hub.subscribe import ELSEWHERE_SECONDS, Subscriptions
from tests.fakes import Ears
from tests.hub.scripted import Outcome, Wire, answer, message, noperm, subscriber_wire

PREFIX = b"spread:ch:{"
KEPT = History(size=10, ttl_seconds=60, meta_ttl_seconds=600)
MOVED = "MOVED 15495 127.0.0.1:7002"


def key(channel: str) -> bytes:
    return PREFIX + channel.encode() + b"}"


class Histories:
    """Answers every read with the top of an empty stream."""

    top = Position("epochone", 7)

    def read(self, channel: str, history: History, **how: Any) -> Any:
        async def reading() -> Stream:
            return Stream(self.top, [])

        return reading()


class Server:
    """The subscriptions of one server of the cluster, and its connection."""

    def __init__(self, clock: Clock, restored: Any = lambda: None) -> None:
        self.clock = clock
        self.ears = Ears()
        self.counters = HubCounters()
        histories: Any = Histories()
        self.repair = Repair(clock, histories, receiver=self.ears, counters=self.counters)
        self.repair.commands_up()
        self.subscriptions = Subscriptions(
            clock,
            "there",
            prefix=PREFIX,
            linger_seconds=3.0,
            reply_seconds=1.0,
            receiver=self.ears,
            counters=self.counters,
            repair=self.repair,
            restored=restored,
            dialect=SHARDED,
            is_part=True,
        )
        self.moved: list[tuple[str, str]] = []
        self.subscriptions.moved = lambda channel, why: self.moved.append((channel, why))

    def up(self) -> Wire:
        self.connection, wire = subscriber_wire(self.clock, SHARDED)
        self.connection.closed = lambda protocol, reason: self.subscriptions.link_down()
        self.subscriptions.link_up(self.connection)
        return wire

    def joins(self, *channels: str) -> list[Outcome]:
        return [Outcome(self.subscriptions.subscribe(channel)) for channel in channels]

    def turns(self) -> None:
        self.clock.advance(0)


def confirmed(*channels: str) -> bytes:
    return b"".join(answer([b"ssubscribe", key(channel), 1]) for channel in channels)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_000_000.0)
    return clock


@pytest.fixture
def server(clock: Clock) -> Server:
    return Server(clock)


def test_each_channel_has_a_command_of_its_own_and_all_leave_together(server: Server) -> None:
    wire = server.up()
    joined = server.joins("a", "b", "c")
    assert wire.commands() == [[b"SSUBSCRIBE", key(channel)] for channel in "abc"]
    wire.says(confirmed("a", "b", "c"))
    assert [outcome.value for outcome in joined] == [None] * 3
    said = pack(KIND_PUBLICATION, 1, bytes(8), 1, 4, b"hello")
    wire.says(answer([b"smessage", key("b"), said]))
    assert [publication.data for _, publication in server.ears.heard] == [b"hello"]
    wire.says(message(key("b"), pack(KIND_PUBLICATION, 1, bytes(8), 2, 4, b"of another dialect")))
    assert wire.is_cut


def test_a_refusal_is_that_of_the_first_that_waits(server: Server) -> None:
    wire = server.up()
    first, second, third = server.joins("a", "b", "c")
    wire.commands()
    wire.says(confirmed("a"), answer(noperm()), confirmed("c"))
    assert first.value is None and third.value is None
    assert type(second.value) is HubRefused and "channel b" in str(second.value)
    assert server.counters.subscribed_channels == 2
    assert not server.moved and not wire.is_cut


def test_a_channel_that_is_served_elsewhere_is_told_and_asked_for_again(server: Server) -> None:
    wire = server.up()
    here, there = server.joins("a", "b")
    wire.commands()
    wire.says(confirmed("a"), answer(MOVED))
    assert here.value is None and not there.fired
    assert server.moved == [("b", MOVED)]
    assert wire.commands() == []
    server.clock.advance(ELSEWHERE_SECONDS)
    assert wire.commands() == [[b"SSUBSCRIBE", key("b")]]
    wire.says(confirmed("b"))
    assert there.value is None


def test_a_channel_that_is_taken_away_goes_on_where_it_is_adopted(clock: Clock) -> None:
    old, new = Server(clock), Server(clock)
    wire = old.up()
    position = Outcome(old.subscriptions.subscribe("a", KEPT))
    wire.commands()
    wire.says(confirmed("a"))
    assert position.value == Position("epochone", 7)
    old.subscriptions.unsubscribe("b")
    wire.says(answer([b"sunsubscribe", key("a"), 0]))
    assert old.moved == [("a", "its slot has moved")]
    released = old.subscriptions.release(lambda channel: channel == "a")
    assert len(released) == 1 and not old.counters.subscribed_channels and not old.counters.followed_channels
    # Nothing is asked for here any more.
    clock.advance(ELSEWHERE_SECONDS)
    assert wire.commands() == []

    wire = new.up()
    new.subscriptions.adopt(released)
    assert wire.commands() == [[b"SSUBSCRIBE", key("a")]]
    asked: list[Any] = []

    async def missing() -> Stream:
        publications = [*new_publications(8, 9)]
        return Stream(Position("epochone", 9), publications)

    new.repair._histories = Recording(asked, missing)  # type: ignore[assignment]
    wire.says(confirmed("a"))
    assert asked == [7], "it is read from where it stood"
    assert [publication.offset for _, publication in new.ears.heard] == [8, 9]
    assert new.counters.followed_channels == new.counters.subscribed_channels == 1


def new_publications(*offsets: int) -> Any:
    for offset in offsets:
        yield Publication(b"x", 1, bytes(8), 0, offset, "epochone")


class Recording:
    def __init__(self, asked: list[Any], answer: Any) -> None:
        self._asked = asked
        self._answer = answer

    def read(self, channel: str, history: History, *, since: int | None = None, **how: Any) -> Any:
        self._asked.append(since)
        return self._answer()


def test_who_waits_and_who_lingers_is_taken_along(clock: Clock) -> None:
    old, new = Server(clock), Server(clock)
    wire = old.up()
    (left,) = old.joins("left")
    wire.commands()
    wire.says(confirmed("left"))
    assert left.value is None
    old.subscriptions.unsubscribe("left")
    (waits,) = old.joins("waits")
    assert wire.commands() == [[b"SSUBSCRIBE", key("waits")]]
    released = old.subscriptions.release(lambda channel: True)
    # What the old server says of it now is nobody's.
    wire.says(confirmed("waits"))
    assert wire.commands() == [[b"SUNSUBSCRIBE", key("left")]]
    wire.says(answer(MOVED))
    assert not wire.is_cut and not waits.fired

    wire = new.up()
    new.subscriptions.adopt(released)
    assert wire.commands() == [[b"SSUBSCRIBE", key("left")], [b"SSUBSCRIBE", key("waits")]]
    wire.says(confirmed("left", "waits"))
    assert waits.value is None
    clock.advance(3.0)
    assert wire.commands() == [[b"SUNSUBSCRIBE", key("left")]]
    wire.says(answer([b"sunsubscribe", key("left"), 1]))
    assert new.counters.subscribed_channels == 1 and not new.moved


def test_what_is_adopted_after_the_end_fails(clock: Clock) -> None:
    old, new = Server(clock), Server(clock)
    (waits,) = old.joins("a")
    new.subscriptions.stop()
    new.subscriptions.adopt(old.subscriptions.release(lambda channel: True))
    assert type(waits.value) is HubUnavailable


def test_what_restored_subscribes_to_is_answered_behind_those_on_their_way(clock: Clock) -> None:
    def gather() -> bytes:
        server.connection.change_subscriptions(b"SSUBSCRIBE", [b"hearing"])
        return b"hearing"

    server = Server(clock, restored=gather)
    wire = server.up()
    server.joins("a")
    assert wire.commands() == [[b"SSUBSCRIBE", b"hearing"]]
    wire.says(answer(noperm()))
    assert wire.commands() == [[b"SSUBSCRIBE", key("a")]], "only its own refusal"
    wire.says(confirmed("a"))
    assert server.subscriptions.is_live and server.counters.subscribed_channels == 1


def test_an_error_that_answers_nothing_cuts(server: Server) -> None:
    wire = server.up()
    wire.says(answer("CLUSTERDOWN The cluster is down"))
    assert wire.is_cut


def test_a_handshake_whose_channel_has_moved_is_tried_again(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock, SHARDED)
    outcome = Outcome(Deferred.fromCoroutine(protocol.introduce()))
    for _ in range(2):
        wire.commands()
        wire.says(b"+OK\r\n")
    assert wire.commands() == [[b"SSUBSCRIBE", b"own"]]
    wire.says(answer(MOVED))
    assert type(outcome.value) is HubUnavailable


def test_a_connection_that_loses_a_channel_of_its_handshake_is_cut(clock: Clock) -> None:
    _, wire = subscriber_wire(clock, SHARDED)
    wire.says(answer([b"sunsubscribe", b"own", 0]))
    assert wire.is_cut
