"""Channels: who is in them, and what reaches them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.hub.api import Format, Publication
from spread.hub.memory import Exchange, MemoryHub
from spread.node import channel as channel_module
from spread.node.channel import Channel, Channels
from spread.node.cork import Cork
from tests.fakes import Ears, FakeMember

SHARD = bytes(8)


class Crowd:
    """A channel and its members, on a cork that is flushed by hand."""

    def __init__(self, size: int) -> None:
        self.cork = Cork(Clock(), lambda: 0.0, 1.0)
        self.channel = Channel("lobby")
        self.members = [FakeMember(number, self.cork) for number in range(1, size + 1)]
        for member in self.members:
            self.channel.add(member)

    def fan_out(self, data: bytes, publisher: int = 0) -> Iterator[None] | None:
        return self.channel.fan_out(Publication(data, Format.TEXT, SHARD, publisher), publisher)

    def heard(self) -> list[bytes]:
        self.cork.flush(1.0)
        return [member.heard for member in self.members]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four members a step, so that ten are a large channel."""
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 4)


# --- fan-out ------------------------------------------------------------------------------------------


def test_everybody_but_the_publisher_gets_it() -> None:
    crowd = Crowd(3)
    assert crowd.fan_out(b"one\n", publisher=2) is None
    assert crowd.heard() == [b"one\n", b"", b"one\n"]


def test_a_publisher_that_is_no_member_takes_it_from_nobody() -> None:
    crowd = Crowd(2)
    crowd.fan_out(b"one\n", publisher=99)
    assert crowd.heard() == [b"one\n", b"one\n"]


def test_it_is_encoded_once_for_each_codec_and_never_copied() -> None:
    crowd = Crowd(0)
    calls: list[str] = []

    def loud(format: int, data: bytes) -> bytes:
        calls.append("loud")
        return data.upper()

    def plain(format: int, data: bytes) -> bytes:
        calls.append("plain")
        return data

    for number, codec in enumerate([loud, plain, loud, plain, loud], 1):
        crowd.members.append(FakeMember(number, crowd.cork, codec))
        crowd.channel.add(crowd.members[-1])
    data = b"a message"
    crowd.fan_out(data, publisher=1)
    assert sorted(calls) == ["loud", "plain"]
    assert crowd.heard() == [b"", data, data.upper(), data, data.upper()]
    sent = [member.transport.sends[0] for member in crowd.members[1:]]
    assert sent[0] is sent[2] is data
    assert sent[1] is sent[3]


def test_an_empty_channel() -> None:
    assert Crowd(0).fan_out(b"one\n") is None


def test_members_that_came_and_went_between_publications() -> None:
    crowd = Crowd(2)
    crowd.fan_out(b"one\n")
    late = FakeMember(3, crowd.cork)
    crowd.members.append(late)
    crowd.channel.add(late)
    assert crowd.channel.remove(crowd.members[0])
    assert not crowd.channel.remove(crowd.members[0])
    crowd.fan_out(b"two\n")
    assert crowd.heard() == [b"one\n", b"one\ntwo\n", b"two\n"]


@pytest.mark.usefixtures("small_steps")
def test_a_large_channel_is_served_in_pieces() -> None:
    crowd = Crowd(10)
    pieces = crowd.fan_out(b"one\n", publisher=5)
    assert pieces is not None
    assert crowd.heard() == [b""] * 10, "nothing before the first step"
    served = [sum(1 for heard in crowd.heard() if heard) for _ in pieces]
    assert served == [4, 7, 9]
    assert crowd.heard() == [b"one\n"] * 4 + [b""] + [b"one\n"] * 5


@pytest.mark.usefixtures("small_steps")
def test_who_leaves_between_pieces_gets_no_more_and_who_joins_gets_nothing() -> None:
    crowd = Crowd(10)
    pieces = crowd.fan_out(b"one\n")
    assert pieces is not None
    next(pieces)
    served, waiting = crowd.members[0], crowd.members[9]
    crowd.channel.remove(served)
    crowd.channel.remove(waiting)
    late = FakeMember(11, crowd.cork)
    crowd.members.append(late)
    crowd.channel.add(late)
    list(pieces)
    assert crowd.heard() == [b"one\n"] * 9 + [b"", b""]


@pytest.mark.usefixtures("small_steps")
def test_the_publisher_leaves_between_pieces() -> None:
    crowd = Crowd(10)
    pieces = crowd.fan_out(b"one\n", publisher=9)
    assert pieces is not None
    next(pieces)
    crowd.channel.remove(crowd.members[8])
    list(pieces)
    assert crowd.heard() == [b"one\n"] * 8 + [b"", b"one\n"]


@pytest.mark.usefixtures("small_steps")
def test_pieces_of_several_codecs() -> None:
    crowd = Crowd(5)
    for number in range(6, 11):
        crowd.members.append(FakeMember(number, crowd.cork, lambda format, data: data.upper()))
        crowd.channel.add(crowd.members[-1])
    pieces = crowd.fan_out(b"one\n")
    assert pieces is not None
    list(pieces)
    # Each lambda above is a codec of its own.
    assert crowd.heard() == [b"one\n"] * 5 + [b"ONE\n"] * 5


# --- joining and leaving ------------------------------------------------------------------------------


class Place:
    """The channels of a shard, at a memory hub."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.exchange = Exchange(self.clock)
        self.hub = MemoryHub(self.exchange, "00000000000000aa")
        self.hub.start(Ears())
        self.channels = Channels(self.hub)
        self.cork = Cork(self.clock, self.clock.seconds, 1.0)

    def member(self, number: int = 1) -> FakeMember:
        return FakeMember(number, self.cork)

    def is_heard(self, name: str) -> bool:
        return self.hub in self.exchange.subscribers.get(name, ())


def result_of(deferred: Deferred[Channel]) -> Channel | Failure:
    outcome: list[Channel | Failure] = []
    deferred.addBoth(outcome.append)
    return outcome[0]


def test_a_channel_is_heard_while_it_has_members_and_some_time_after() -> None:
    place = Place()
    first, second = place.member(1), place.member(2)
    channel = result_of(place.channels.join(first, "lobby"))
    assert isinstance(channel, Channel)
    assert channel is place.channels.get("lobby") is result_of(place.channels.join(second, "lobby"))
    assert len(place.channels) == 1
    assert place.is_heard("lobby")
    place.channels.leave(first, channel)
    place.channels.leave(first, channel)
    assert place.channels.get("lobby") is channel
    place.channels.leave(second, channel)
    assert len(place.channels) == 0
    assert place.is_heard("lobby")
    place.clock.advance(60)
    assert not place.is_heard("lobby")


def test_a_member_that_comes_back_soon() -> None:
    place = Place()
    member = place.member()
    channel = result_of(place.channels.join(member, "lobby"))
    assert isinstance(channel, Channel)
    place.channels.leave(member, channel)
    again = result_of(place.channels.join(member, "lobby"))
    place.clock.advance(60)
    assert place.is_heard("lobby")
    assert place.channels.get("lobby") is again
    # What is left of the first life of the channel changes nothing in the second.
    place.channels.leave(member, channel)
    assert place.channels.get("lobby") is again


def test_nobody_is_a_member_before_the_channel_is_heard() -> None:
    place = Place()
    place.exchange.cut()
    first, second = place.member(1), place.member(2)
    joining = [place.channels.join(first, "lobby"), place.channels.join(second, "lobby")]
    channel = place.channels.get("lobby")
    assert channel is not None
    assert (channel.members, channel.joining, channel.is_live) == ({}, 2, False)
    place.exchange.restore()
    assert [result_of(one) for one in joining] == [channel, channel]
    assert (list(channel.members), channel.joining, channel.is_live) == ([1, 2], 0, True)


def test_a_cancelled_join_leaves_nothing_behind() -> None:
    place = Place()
    place.exchange.cut()
    joining = place.channels.join(place.member(), "lobby")
    joining.cancel()
    failure = result_of(joining)
    assert isinstance(failure, Failure) and failure.check(CancelledError)
    assert len(place.channels) == 0
    place.exchange.restore()
    assert not place.is_heard("lobby")
    assert place.clock.getDelayedCalls() == []


def test_a_cancelled_join_takes_the_channel_from_nobody_else() -> None:
    place = Place()
    place.exchange.cut()
    first, second = place.member(1), place.member(2)
    cancelled, kept = place.channels.join(first, "lobby"), place.channels.join(second, "lobby")
    cancelled.addErrback(lambda failure: failure.trap(CancelledError))
    cancelled.cancel()
    place.exchange.restore()
    channel = result_of(kept)
    assert isinstance(channel, Channel)
    assert (list(channel.members), channel.joining) == ([2], 0)
    assert place.is_heard("lobby")
    # Also when the one who was there first leaves again before.
    third = place.channels.join(place.member(3), "lobby")
    assert result_of(third) is channel


def test_a_join_while_a_cancelled_one_is_forgotten() -> None:
    place = Place()
    place.exchange.cut()
    cancelled = place.channels.join(place.member(1), "lobby")
    cancelled.addErrback(lambda failure: failure.trap(CancelledError))
    cancelled.cancel()
    joining = place.channels.join(place.member(2), "lobby")
    place.exchange.restore()
    channel = result_of(joining)
    assert isinstance(channel, Channel)
    assert place.channels.get("lobby") is channel
    assert place.is_heard("lobby")
