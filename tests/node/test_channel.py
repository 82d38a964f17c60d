"""Channels: who is in them, and what reaches them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from spread.hub.api import Broken, ClientInfo, Format, Joined, Left, Position, Publication
from spread.hub.memory import Exchange, MemoryHub
from spread.node import channel as channel_module
from spread.node.channel import Channel
from spread.node.channels import Channels
from spread.node.codec import Codec, Encoder, Event
from spread.node.cork import Cork
from spread.node.encoders import codec_of, encode_text
from spread.node.metrics import ShardCounters
from spread.node.wire.delta import apply
from tests.fakes import Ears, FakeMember

SHARD = bytes(8)


class Crowd:
    """A channel and its members, on a cork that is flushed by hand."""

    def __init__(self, size: int) -> None:
        self.cork = Cork(Clock(), lambda: 0.0, 1.0)
        self.counters = ShardCounters()
        self.channel = Channel("lobby", None, self.counters)
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


def test_it_is_encoded_once_for_each_encoder_framed_once_for_each_codec_and_never_copied() -> None:
    crowd = Crowd(0)
    calls: list[str] = []

    def encoder(name: str) -> Encoder:
        def encode(channel: str, event: Event, previous: Publication | None) -> bytes | None:
            calls.append(name)
            assert isinstance(event, Publication)
            return event.data

        return encode

    def framing(mark: bytes) -> Callable[[bytes], bytes]:
        def frame(message: bytes) -> bytes:
            calls.append(mark.decode())
            return mark + message

        return frame

    json, text = encoder("json"), encoder("text")
    wide = Codec("json/wide", "json", json, framing(b"W"), b"".join)
    narrow = Codec("json/narrow", "json", json, framing(b"N"), b"".join)
    plain = Codec("text", "text", text, lambda message: message, b"".join)
    for number, codec in enumerate([wide, plain, narrow, plain, wide, narrow], 1):
        crowd.members.append(FakeMember(number, crowd.cork, codec))
        crowd.channel.add(crowd.members[-1])
    data = b"a message"
    crowd.fan_out(data, publisher=1)
    assert sorted(calls) == ["N", "W", "json", "text"]
    assert crowd.heard() == [b"", data, b"N" + data, data, b"W" + data, b"N" + data]
    sent = [member.transport.sends[0] for member in crowd.members[1:]]
    assert sent[0] is sent[2] is data
    assert sent[1] is sent[4]
    counters = crowd.counters
    assert (counters.encoded, counters.framed, counters.spread, counters.deliveries) == (2, 3, 1, 5)


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
    loud = Codec("loud", "text", encode_text, bytes.upper, b"".join)
    for number in range(6, 11):
        crowd.members.append(FakeMember(number, crowd.cork, loud))
        crowd.channel.add(crowd.members[-1])
    pieces = crowd.fan_out(b"one\n")
    assert pieces is not None
    list(pieces)
    assert crowd.heard() == [b"one\n"] * 5 + [b"ONE\n"] * 5


# --- joining and leaving ------------------------------------------------------------------------------


class Place:
    """The channels of a shard, at a memory hub."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.exchange = Exchange(self.clock)
        self.hub = MemoryHub(self.exchange, "00000000000000aa")
        self.hub.start(Ears())
        self.channels = Channels(self.hub, ShardCounters())
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


# --- positions ----------------------------------------------------------------------------------------


class Stream(Crowd):
    """A channel that keeps history, at offset 5 of epoch ``epoch``."""

    def __init__(self, size: int = 0) -> None:
        super().__init__(size)
        self.channel.position = Position("epoch", 5)

    def publish(self, offset: int, data: bytes = b"", delta: bool = False, epoch: str = "epoch") -> None:
        data = data or b"%d" % offset
        publication = Publication(data, Format.JSON, SHARD, 0, offset, epoch, delta=delta)
        assert self.channel.fan_out(publication, 0) is None


def test_what_was_handed_over_before_a_channel_came_into_being_is_skipped() -> None:
    stream = Stream(1)
    for offset in (4, 5, 6, 6, 7):
        stream.publish(offset)
    assert stream.heard() == [b"6\n7\n"]
    assert stream.channel.position == Position("epoch", 7)


def test_another_epoch_begins_anew() -> None:
    stream = Stream(1)
    stream.publish(1, epoch="later")
    assert stream.heard() == [b"1\n"]
    assert stream.channel.position == Position("later", 1)


def test_what_has_no_offset_moves_nothing() -> None:
    stream = Stream(1)
    stream.publish(0, b"plain")
    assert stream.heard() == [b"plain\n"]
    assert stream.channel.position == Position("epoch", 5)


def test_members_are_told_of_a_break_once_the_position_is_set() -> None:
    stream = Stream(2)
    seen: list[Position | None] = []
    stream.members[0].broken = lambda: seen.append(stream.channel.position)  # type: ignore[method-assign]
    assert stream.channel.fan_out(Broken(Position("new", 3)), 0) is None
    assert seen == [Position("new", 3)]
    assert stream.members[1].breaks == 1
    stream.publish(4, epoch="new")
    assert stream.heard() == [b"4\n", b"4\n"]


def test_a_collector_keeps_what_is_fanned_out_up_to_its_limit() -> None:
    stream = Stream()
    collector, small, spoilt = (stream.channel.collect(limit) for limit in (3, 1, 3))
    stream.publish(6)
    stream.publish(0, b"plain")
    assert [publication.offset for publication in small.publications] == [6]
    stream.publish(7)
    assert [publication.offset for publication in collector.publications] == [6, 7]
    assert (small.is_over, small.publications) == (True, [])
    stream.channel.stop_collecting(collector)
    stream.channel.stop_collecting(collector)
    stream.publish(8)
    assert len(collector.publications) == 2
    stream.channel.fan_out(Broken(Position("new", 0)), 0)
    assert spoilt.is_over
    assert not collector.is_over


# --- joins and leaves ---------------------------------------------------------------------------------


def test_joins_and_leaves_are_for_those_who_hear_them() -> None:
    crowd = Crowd(0)
    lines = codec_of("lines", "json", lambda message: message + b"\n", b"".join)
    for number in (1, 2, 3):
        member = FakeMember(number, crowd.cork, lines)
        member.hears_joins = number != 2
        crowd.members.append(member)
        crowd.channel.add(member)
    info = ClientInfo("ann", "c-1", b'{"n":1}', b"\xff no JSON")
    crowd.channel.fan_out(Joined(info), 0)
    crowd.channel.fan_out(Left(info), 0)
    said = b'{"push":{"channel":"lobby","%b":{"info":{"user":"ann","client":"c-1","conn_info":{"n":1}}}}}\n'
    assert crowd.heard() == [said % b"join" + said % b"leave", b"", said % b"join" + said % b"leave"]
    assert crowd.counters.deliveries == 0


# --- differences --------------------------------------------------------------------------------------

WORDS = b'{"words":"a rather long text that is said again and again, with the number %d"}'


def _delta_member(stream: Stream, number: int) -> FakeMember:
    lines = codec_of("lines", "json", lambda message: message + b"\n", b"".join)
    assert lines.full is not None
    member = FakeMember(number, stream.cork, lines.full)
    stream.members.append(member)
    return member


def _sizes(member: FakeMember) -> list[tuple[int, bool]]:
    """Offset, and whether it was told as a difference, of all that a member got."""
    return [
        (json.loads(line)["push"]["pub"].get("offset", 0), "delta" in json.loads(line)["push"]["pub"])
        for line in member.heard.splitlines()
    ]


def test_the_first_publication_is_full_and_the_next_ones_are_differences() -> None:
    stream = Stream()
    early, late = _delta_member(stream, 1), _delta_member(stream, 2)
    stream.channel.add(early)
    stream.publish(6, WORDS % 6, delta=True)
    stream.publish(7, WORDS % 7, delta=True)
    stream.channel.add(late)
    stream.publish(8, WORDS % 8, delta=True)
    stream.publish(9, WORDS % 9, delta=False)
    stream.publish(10, WORDS % 10, delta=True)
    stream.heard()
    assert _sizes(early) == [(6, False), (7, True), (8, True), (9, False), (10, True)]
    assert _sizes(late) == [(8, False), (9, False), (10, True)]
    base = b""
    for line in early.heard.splitlines():
        pub = json.loads(line)["push"]["pub"]
        base = apply(base, pub["data"].encode(), 1 << 16) if "delta" in pub else pub["data"].encode()
        assert base == WORDS % pub["offset"]


def test_who_recovered_the_newest_one_has_a_base() -> None:
    stream = Stream()
    member = _delta_member(stream, 1)
    base = Publication(WORDS % 5, Format.JSON, SHARD, 0, 5, "epoch", delta=True)
    stream.channel.add_with_base(member, base)
    stream.publish(6, WORDS % 6, delta=True)
    stream.heard()
    assert _sizes(member) == [(6, True)]


def test_who_recovered_another_one_has_none() -> None:
    stream = Stream()
    member = _delta_member(stream, 1)
    base = Publication(WORDS % 4, Format.JSON, SHARD, 0, 4, "epoch", delta=True)
    stream.channel.add_with_base(member, base)
    stream.publish(6, WORDS % 6, delta=True)
    stream.heard()
    assert _sizes(member) == [(6, False)]


def test_the_last_publication_is_kept_only_for_those_who_need_it() -> None:
    stream = Stream(1)
    member = _delta_member(stream, 2)
    stream.channel.add(member)
    assert stream.channel.previous is None
    stream.publish(6)
    assert stream.channel.previous is not None
    assert stream.channel.remove(member)
    assert stream.channel.previous is None
    stream.publish(7)
    assert stream.channel.previous is None
    fresh = _delta_member(stream, 3)
    stream.channel.add(fresh)
    assert stream.channel.remove(fresh)
    assert not stream.channel.remove(fresh)
    stream.publish(8)


def test_what_json_cannot_carry_is_left_out_and_counted() -> None:
    crowd = Crowd(1)
    lines = codec_of("lines", "json", lambda message: message + b"\n", b"".join)
    member = FakeMember(2, crowd.cork, lines)
    crowd.members.append(member)
    crowd.channel.add(member)
    crowd.channel.fan_out(Publication(b"\xff\x00", Format.BINARY, SHARD, 0), 0)
    assert crowd.heard() == [b"\xff\x00\n", b""]
    assert crowd.counters.not_encoded == 1
