"""The fan-out: in slices, in order, and with a hub that is paused when too much waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.defer import succeed
from twisted.logger import LogEvent, globalLogPublisher

from spread.hub.api import Format, Publication
from spread.hub.memory import Exchange, MemoryHub
from spread.node import channel as channel_module
from spread.node import fanout as fanout_module
from spread.node.channels import Channels
from spread.node.cork import Cork
from spread.node.fanout import (
    PUBLICATION_BYTES,
    PUBLICATIONS_PER_LOOK,
    REST_EVERY_BYTES,
    REST_SECONDS,
    RUN_MAX_BYTES,
    RUN_MAX_PUBLICATIONS,
    Fanout,
)
from spread.node.metrics import ShardCounters
from spread.node.pressure import Pressure
from tests.fakes import FakeMember, TurnClock

OURS = bytes.fromhex("00000000000000aa")
THEIRS = bytes.fromhex("00000000000000bb")


class Now:
    """A fine clock that takes a step each time somebody looks."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        self.seconds += self.step
        return self.seconds


class CountingHub(MemoryHub):
    """Notes when it is paused and resumed, and what was pressed."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange, OURS.hex())
        self.asked: list[str] = []

    def pause(self) -> None:
        self.asked.append("pause")
        super().pause()

    def resume(self) -> None:
        self.asked.append("resume")
        super().resume()

    def press(self, channel: str) -> None:
        self.asked.append(f"press {channel}")
        super().press(channel)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publications of one channel in a row are delivered one by one."""
    monkeypatch.setattr(fanout_module, "RUN_MAX_PUBLICATIONS", 1)


class Stage:
    """A fan-out with everything around it; ``members`` are in the channel ``lobby``."""

    def __init__(self, members: int = 2, inbox_max_bytes: int = 1 << 20) -> None:
        self.clock = TurnClock()
        self.clock.advance(1_000_000.0)  # as a reactor's, it does not begin at 0
        self.now = Now()
        self.hub = CountingHub(Exchange(self.clock))
        self.counters = ShardCounters()
        self.cork = Cork(self.clock, self.now, 0.5)
        self.channels = Channels(self.hub, self.counters)
        self.pressure = Pressure(self.clock, self.hub, self.counters)
        self.fanout = Fanout(
            self.clock,
            self.now,
            hub=self.hub,
            channels=self.channels,
            cork=self.cork,
            pressure=self.pressure,
            counters=self.counters,
            answer=succeed,
            incarnation=OURS,
            slice_seconds=0.5,
            inbox_max_bytes=inbox_max_bytes,
        )
        self.hub.start(self.fanout)
        self.members = [self.member(number) for number in range(1, members + 1)]

    def member(self, number: int, name: str = "lobby") -> FakeMember:
        member = FakeMember(number, self.cork)
        self.channels.join(member, name)
        return member

    def read(self, *words: bytes, channel: str = "lobby", shard: bytes = THEIRS, session: int = 0) -> None:
        """One read from the hub brings these."""
        for data in words:
            self.fanout.received(channel, Publication(data, Format.TEXT, shard, session))
        self.fanout.read_done()

    def turns(self) -> int:
        """Take turns until there is nothing to do; how many it took."""
        count = 0
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.turn()
            count += 1
        return count

    @property
    def heard(self) -> list[bytes]:
        return [member.heard for member in self.members]


def test_what_is_read_is_delivered_in_the_same_turn_in_one_send() -> None:
    stage = Stage()
    stage.read(b"one\n", b"two\n", b"three\n")
    assert stage.heard == [b"one\ntwo\nthree\n"] * 2
    assert [len(member.transport.sends) for member in stage.members] == [1, 1]
    assert stage.fanout.is_idle
    assert (stage.counters.spread, stage.counters.deliveries, stage.counters.inbox_bytes) == (3, 6, 0)


def test_one_that_is_alone_is_sent_at_once() -> None:
    stage = Stage(members=3)
    stage.members[1].outbox.write(b"before\n")
    stage.read(b"one\n")
    assert stage.heard == [b"one\n", b"", b"one\n"], "what waits leaves at the end of the turn, in one send"
    stage.turns()
    assert stage.heard == [b"one\n", b"before\none\n", b"one\n"]
    assert [len(member.transport.sends) for member in stage.members] == [1, 1, 1]


def test_a_run_of_one_channel_is_one_write_and_ends_where_another_begins() -> None:
    stage = Stage()
    other = stage.member(3, "elsewhere")
    writes: list[bytes] = []
    write = stage.members[1].outbox.write
    stage.members[1].outbox = Noting(writes, write)  # type: ignore[assignment]
    publications = [
        ("lobby", b"1\n", THEIRS, 0),
        ("lobby", b"2\n", THEIRS, 1),
        ("elsewhere", b"3\n", THEIRS, 0),
        ("lobby", b"4\n", OURS, 1),
        ("lobby", b"5\n", OURS, 1),
        ("lobby", b"6\n", THEIRS, 0),
        ("elsewhere", b"7\n", THEIRS, 0),
    ]
    for name, data, shard, session in publications:
        stage.fanout.received(name, Publication(data, Format.TEXT, shard, session))
    stage.fanout.read_done()
    stage.turns()
    assert writes == [b"1\n2\n", b"4\n5\n", b"6\n"]
    assert stage.members[0].heard == b"1\n2\n6\n", "but for its own"
    assert other.heard == b"3\n7\n"
    assert (stage.counters.spread, stage.counters.deliveries, stage.counters.inbox_bytes) == (7, 10, 0)
    assert stage.counters.encoded == stage.counters.framed == 7


class Noting:
    """An outbox that notes what it is given at once."""

    def __init__(self, writes: list[bytes], write: Callable[[bytes], None]) -> None:
        self._writes = writes
        self._write = write

    def write(self, frame: bytes) -> None:
        self._writes.append(frame)
        self._write(frame)

    def send(self, frame: bytes) -> None:
        self.write(frame)


def test_a_run_has_bounds() -> None:
    stage = Stage()
    writes: list[bytes] = []
    stage.members[1].outbox = Noting(writes, stage.members[1].outbox.write)  # type: ignore[assignment]
    stage.read(*[b"x\n"] * (RUN_MAX_PUBLICATIONS + 3))
    assert [len(data) // 2 for data in writes] == [RUN_MAX_PUBLICATIONS, 3]
    writes.clear()
    stage.read(*[b"x" * (RUN_MAX_BYTES // 2)] * 5)
    assert [len(data) // (RUN_MAX_BYTES // 2) for data in writes] == [2, 2, 1]


def test_our_own_session_does_not_hear_itself_but_its_namesake_elsewhere_is_heard() -> None:
    stage = Stage()
    stage.read(b"ours\n", shard=OURS, session=1)
    stage.read(b"theirs\n", shard=THEIRS, session=1)
    assert stage.heard == [b"theirs\n", b"ours\ntheirs\n"]
    assert stage.counters.deliveries == 3


def test_a_channel_without_members_costs_nothing() -> None:
    stage = Stage()
    stage.read(b"one\n", channel="deserted")
    assert stage.heard == [b"", b""]
    assert (stage.counters.spread, stage.counters.inbox_bytes) == (0, 0)


def test_a_read_without_publications() -> None:
    stage = Stage()
    stage.read()
    assert stage.clock.getDelayedCalls() == []


def test_delivery_goes_on_in_the_next_turn_when_the_time_is_over(one_at_a_time: None) -> None:
    stage = Stage()
    words = [b"%d\n" % number for number in range(PUBLICATIONS_PER_LOOK * 3)]
    stage.now.step = 1.0
    stage.read(*words)
    assert stage.heard == [b"".join(words[:PUBLICATIONS_PER_LOOK])] * 2
    assert not stage.fanout.is_idle
    stage.read(b"read meanwhile\n")
    assert stage.heard == [b"".join(words[:PUBLICATIONS_PER_LOOK])] * 2, "one slice a turn"
    stage.turns()
    assert stage.heard == [b"".join(words) + b"read meanwhile\n"] * 2
    assert stage.fanout.is_idle


def test_between_two_slices_the_reactor_serves_others(one_at_a_time: None) -> None:
    stage = Stage()
    stage.now.step = 1.0
    stage.read(*[b"x"] * (PUBLICATIONS_PER_LOOK * 4 + 1))
    seen: list[int] = []

    def somebody_else() -> None:
        seen.append(len(stage.heard[0]))
        if not stage.fanout.is_idle:
            stage.clock.callLater(0, somebody_else)

    stage.clock.callLater(0, somebody_else)
    stage.turns()
    assert seen == sorted(set(seen)), "each of its turns saw some more delivered"
    assert len(seen) >= 4


def test_a_large_channel_keeps_its_order_over_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 2)
    stage = Stage(members=7)
    small = stage.member(99, "small")
    stage.now.step = 1.0
    for number in range(5):
        stage.fanout.received("lobby", Publication(b"%d\n" % number, Format.TEXT, THEIRS, 0))
        stage.fanout.received("small", Publication(b"%d\n" % number, Format.TEXT, THEIRS, 0))
    stage.fanout.read_done()
    assert stage.heard.count(b"0\n") == 2
    stage.read(b"5\n")
    turns = stage.turns()
    assert stage.heard == [b"0\n1\n2\n3\n4\n5\n"] * 7
    assert small.heard == b"0\n1\n2\n3\n4\n"
    assert turns >= 18, "six publications in four pieces each, one a slice"
    assert stage.counters.deliveries == 6 * 7 + 5


def test_a_member_that_leaves_in_the_middle_of_a_publication(
    monkeypatch: pytest.MonkeyPatch, one_at_a_time: None
) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 2)
    monkeypatch.setattr(channel_module, "SENDS_PER_STEP", 2)
    stage = Stage(members=5)
    lobby = stage.channels.get("lobby")
    assert lobby is not None
    stage.now.step = 1.0
    stage.read(b"one\n", b"two\n")
    for member in stage.members[1:]:
        stage.channels.leave(member, lobby)
    stage.turns()
    assert stage.heard == [b"one\ntwo\n", b"one\n", b"", b"", b""]
    stage.read(b"three\n")
    stage.channels.leave(stage.members[0], lobby)
    assert stage.heard[0] == b"one\ntwo\nthree\n"


def test_sockets_that_still_wait_come_before_new_publications() -> None:
    stage = Stage(members=130)
    stage.now.step = 1.0  # each look finds the time over: 64 sockets a flush
    stage.fanout.received("lobby", Publication(b"one\n", Format.TEXT, THEIRS, 0))
    stage.read(b"not alone", channel="nobody's")
    stage.clock.turn()
    assert stage.heard.count(b"one\n") == 64
    stage.read(b"two\n")
    assert stage.heard.count(b"one\n") == 128
    assert b"two\n" not in b"".join(stage.heard), "not before everybody has the first"
    stage.turns()
    assert stage.heard == [b"one\ntwo\n"] * 130


# --- the inbox ----------------------------------------------------------------------------------------


def test_the_hub_is_paused_above_the_bound_and_resumed_below_half_of_it(one_at_a_time: None) -> None:
    size = 1000
    whole = size + PUBLICATION_BYTES
    stage = Stage(inbox_max_bytes=20 * whole)
    stage.now.step = 1.0
    stage.read(*[b"x" * size] * 20)
    assert stage.hub.asked == []
    assert stage.counters.inbox_bytes == (20 - PUBLICATIONS_PER_LOOK) * whole
    stage.read(*[b"x" * size] * 12)
    stage.read()
    assert (stage.hub.asked, stage.counters.inbox_pauses) == (["pause"], 1)
    waiting = [stage.counters.inbox_bytes // whole]
    while stage.hub.asked == ["pause"]:
        stage.clock.turn()
        waiting.append(stage.counters.inbox_bytes // whole)
    assert waiting == [24, 16, 8]
    stage.turns()
    assert stage.hub.asked == ["pause", "resume"]
    assert stage.counters.inbox_bytes == 0
    assert [len(heard) for heard in stage.heard] == [32 * size] * 2


def test_tiny_publications_count_for_what_they_take_in_memory() -> None:
    stage = Stage(inbox_max_bytes=100 * PUBLICATION_BYTES)
    stage.read(*[b""] * 101)
    assert stage.hub.asked[0] == "pause"


def test_a_hub_that_is_paused_and_resumed_loses_nothing() -> None:
    stage = Stage(inbox_max_bytes=10 * PUBLICATION_BYTES)
    stage.now.step = 1.0
    for number in range(50):
        stage.hub.publish("lobby", b"%d\n" % number, Format.TEXT, 0)
    stage.turns()
    assert stage.heard == [b"".join(b"%d\n" % number for number in range(50))] * 2
    assert "pause" in stage.hub.asked
    assert stage.hub.asked[-1] == "resume"


# --- pressure and the rest ----------------------------------------------------------------------------


def pressing_stage(members: int) -> Stage:
    stage = Stage(members)
    stage.members[-1].transport.room = 0
    stage.read(b"x" * 600_000)
    assert stage.hub.asked == ["press lobby"]
    stage.clock.advance(1.0)
    return stage


def test_a_slow_member_presses_its_channel_and_no_other() -> None:
    stage = pressing_stage(2)
    stage.member(3, "small")
    stage.read(b"y", channel="small")
    assert stage.hub.asked == ["press lobby"]
    stage.read(b"y")
    assert stage.hub.asked == ["press lobby"] * 2
    assert stage.counters.pressed == 2


def test_a_slow_member_of_a_large_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 2)
    stage = pressing_stage(5)
    stage.now.step = 1.0
    stage.read(b"y")
    stage.turns()
    assert stage.hub.asked == ["press lobby"] * 2


def test_what_the_hub_says_of_pressed_channels_is_passed_on() -> None:
    stage = Stage()
    stage.fanout.pressed("lobby")
    held: list[object] = []

    class Publisher:
        def released(self) -> None:
            held.remove(self)

    publisher = Publisher()
    held.append(publisher)
    assert stage.pressure.hold("lobby", publisher)
    assert stage.hub.asked == []
    stage.clock.advance(1.0)
    assert held == []


def test_a_window_without_hearing_is_logged() -> None:
    stage = Stage()
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        stage.fanout.missed(1.5)
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert [event["seconds"] for event in events] == [1.5]


def test_nothing_is_delivered_after_a_stop(one_at_a_time: None) -> None:
    stage = Stage()
    stage.now.step = 1.0
    stage.read(*[b"x"] * (PUBLICATIONS_PER_LOOK * 2))
    stage.fanout.stop()
    stage.fanout.stop()
    stage.read(b"y")
    assert stage.fanout.is_idle
    assert stage.turns() <= 1  # the cork's
    assert stage.heard == [b"x" * PUBLICATIONS_PER_LOOK] * 2
    assert stage.counters.inbox_bytes == 0


def test_the_fan_out_rests_for_a_member_that_is_behind() -> None:
    stage = Stage(2)
    stage.members[-1].transport.room = 0
    stage.read(b"x" * 600_000, b"a\n", b"b\n")
    assert stage.counters.rests == 1
    assert stage.heard[0] == b"x" * 600_000
    stage.read(b"c\n")
    stage.clock.advance(REST_SECONDS / 2)
    assert stage.heard[0] == b"x" * 600_000, "what comes during a rest waits with the others"
    stage.clock.advance(REST_SECONDS)
    assert stage.heard[0] == b"x" * 600_000 + b"a\nb\nc\n"
    assert stage.counters.rests == 1, "not again before so many bytes were delivered"
    stage.read(b"y" * REST_EVERY_BYTES, b"d\n")
    assert stage.counters.rests == 2
    stage.clock.advance(REST_SECONDS)
    assert stage.heard[0].endswith(b"yd\n")


def test_the_fan_out_rests_within_a_large_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "SENDS_PER_STEP", 2)
    stage = Stage(5)
    stage.members[0].transport.room = 0
    stage.read(b"x" * 600_000)
    assert stage.counters.rests == 1
    assert [len(heard) for heard in stage.heard[1:]] == [600_000, 0, 0, 0]
    stage.clock.advance(REST_SECONDS)
    assert [len(heard) for heard in stage.heard[1:]] == [600_000] * 4


class Defective:
    """An outbox with a defect of ours."""

    def write(self, frame: bytes) -> None:
        raise RuntimeError("a defect")


@pytest.mark.parametrize("step", [1, 512])
def test_a_defect_in_one_channel_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", step)
    stage = Stage(members=2)
    stage.members[1].outbox = Defective()  # type: ignore[assignment]
    other = stage.member(3, "garden")
    told: list[LogEvent] = []
    globalLogPublisher.addObserver(told.append)
    try:
        stage.fanout.received("lobby", Publication(b"1\n", Format.TEXT, THEIRS, 0))
        stage.read(b"2\n", channel="garden")
        stage.turns()
    finally:
        globalLogPublisher.removeObserver(told.append)
    assert other.heard == b"2\n" and stage.members[0].heard == b"1\n"
    assert [event["channel"] for event in told if "log_failure" in event] == ["lobby"]
    assert stage.fanout.is_idle and not stage.counters.inbox_bytes
