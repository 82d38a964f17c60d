"""Followed channels: in order and without a hole, whatever the link loses and whenever a read is answered."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.hub import repair as module
from spread.hub.api import (
    Ancestor,
    Broken,
    ClientInfo,
    Event,
    History,
    HubCounters,
    Joined,
    Position,
    Publication,
    Stream,
)
from spread.hub.errors import HubRefused, HubUnavailable, LinkLost
from spread.hub.repair import HELD_MAX, PART, PART_BYTES, READS, Follower, FollowState, Repair
from tests.hub.scripted import captured
from tests.hub.shards import Recorder

KEPT = History(10_000, 60, 3600)
SHARD = b"shard000"
JOINED = Joined(ClientInfo("u", "c"))


def made(offset: int, epoch: str = "one", size: int = 1) -> Publication:
    return Publication(b"%d" % offset + b"x" * (size - 1), 1, SHARD, 0, offset, epoch)


PLAIN = Publication(b"plain", 1, SHARD, 0)


class Reads:
    """Stands for ``Histories``: the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None, int]] = []
        self.waiting: deque[Deferred[Stream]] = deque()

    async def read(
        self,
        channel: str,
        history: History,
        *,
        since: int | None = None,
        limit: int = 0,
        max_bytes: int = 0,
        seen: Position | None = None,
    ) -> Stream:
        assert max_bytes == PART_BYTES
        assert since == (None if seen is None else seen.offset)
        self.asked.append((channel, since, limit))
        answer: Deferred[Stream] = Deferred()
        self.waiting.append(answer)
        return await answer

    def answer(
        self,
        top: int,
        offsets: Any = (),
        epoch: str = "one",
        before: dict[str, Ancestor] | None = None,
    ) -> None:
        self.waiting.popleft().callback(
            Stream(Position(epoch, top), [made(offset, epoch) for offset in offsets], before or {})
        )

    def fail(self, error: Exception) -> None:
        self.waiting.popleft().errback(error)


class Stage:
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.reads = Reads()
        self.ears = Recorder()
        self.counters = HubCounters()
        histories: Any = self.reads
        self.repair = Repair(self.clock, histories, receiver=self.ears, counters=self.counters)
        self.repair.commands_up()
        self.positions: list[Position] = []
        self.repair.became_live = lambda follower: self.positions.append(follower.position)

    def follow(self, channel: str = "a") -> Follower:
        follower = self.repair.follow(channel, channel.encode(), KEPT)
        self.repair.confirmed(follower)
        return follower

    def live(self, top: int = 0) -> Follower:
        follower = self.follow()
        self.reads.answer(top)
        return follower

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.ears.events]

    @property
    def offsets(self) -> list[int]:
        return self.ears.offsets("a")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def hear(follower: Follower, *events: Event) -> None:
    for event in events:
        follower.heard(event)


# -- the table -----------------------------------------------------------------------------------------


def test_the_position_is_read_first(stage: Stage) -> None:
    follower = stage.repair.follow("a", b"a", KEPT)
    assert follower.state is FollowState.AWAY and stage.reads.asked == []
    stage.repair.confirmed(follower)
    assert follower.state is FollowState.READING and stage.reads.asked == [("a", None, 0)]
    hear(follower, JOINED, made(7), made(8), PLAIN)
    assert stage.events == [] and stage.positions == []
    stage.reads.answer(7)
    assert follower.state is FollowState.LIVE and stage.positions == [Position("one", 8)]
    assert stage.events == [JOINED, made(8), PLAIN]
    hear(follower, made(9), PLAIN, JOINED)
    assert stage.events[3:] == [made(9), PLAIN, JOINED]
    assert stage.counters == HubCounters(followed_channels=1)


def test_who_heard_it_before_gets_what_is_on_its_way(stage: Stage) -> None:
    follower = stage.repair.follow("a", b"a", KEPT)
    stage.repair.confirmed(follower, is_heard=True)
    hear(follower, made(5))
    stage.reads.answer(7)
    hear(follower, made(6), made(7), made(8))
    assert stage.offsets == [5, 6, 7, 8] and stage.positions == [Position("one", 7)]


def test_a_hole_is_filled(stage: Stage) -> None:
    follower = stage.live(4)
    hear(follower, made(5), made(8), PLAIN, made(9))
    assert stage.offsets == [5] and stage.reads.asked[1:] == [("a", 5, PART)]
    stage.reads.answer(9, [6, 7, 8, 9])
    assert stage.events == [made(5), made(6), made(7), made(8), PLAIN, made(9)]
    assert stage.counters.repaired == 4 and stage.counters.broken == 0
    hear(follower, made(9), made(10))
    assert stage.offsets[-2:] == [9, 10] and stage.counters.duplicates == 1


def test_a_read_in_parts(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(250), made(251))
    stage.reads.answer(250, range(1, 101))
    assert follower.state is FollowState.READING and follower.position == Position("one", 100)
    stage.reads.answer(251, range(101, 201))
    stage.reads.answer(252, range(201, 253))
    assert stage.reads.asked[1:] == [("a", 0, PART), ("a", 100, PART), ("a", 200, PART)]
    hear(follower, made(252), made(253))
    assert stage.offsets == list(range(1, 254))


def test_a_held_hole_is_read_again(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(2))
    hear(follower, made(5))
    stage.reads.answer(3, [1, 2, 3])
    assert follower.state is FollowState.READING
    stage.reads.answer(5, [4, 5])
    assert stage.offsets == [1, 2, 3, 4, 5]


def test_what_was_trimmed_is_told(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(9))
    stage.reads.answer(9, [7, 8, 9])
    assert stage.events == [Broken(Position("one", 6)), made(7), made(8), made(9)]
    hear(follower, made(12))
    stage.reads.answer(12)
    assert stage.events[4:] == [Broken(Position("one", 12))]
    assert stage.counters.broken == 2 and stage.positions[-1] == Position("one", 12)


def test_entries_that_cannot_be_read_are_told(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(5))
    stage.reads.answer(5, [1, 2, 5])
    assert stage.offsets == [1, 2] and stage.reads.asked[-1] == ("a", 2, PART)
    stage.reads.answer(5, [5])
    assert stage.events[2:] == [Broken(Position("one", 4)), made(5)]


def test_another_epoch_is_read_from_its_beginning(stage: Stage) -> None:
    follower = stage.live(50)
    hear(follower, made(2, "two"), made(3, "two"))
    stage.reads.answer(3, [], "two")
    stage.reads.answer(3, [1, 2, 3], "two")
    assert stage.reads.asked[1:] == [("a", 50, PART), ("a", 0, PART)]
    assert stage.events == [Broken(Position("two", 0)), *(made(n, "two") for n in (1, 2, 3))]


def test_a_copy_goes_on_where_this_one_is(stage: Stage) -> None:
    follower = stage.live(50)
    hear(follower, made(52, "two"))
    stage.reads.answer(52, [51, 52], "two", {"one": Ancestor(51, False), "none": Ancestor(9, True)})
    assert follower.state is FollowState.LIVE and follower.position == Position("two", 52)
    assert stage.events == [Broken(Position("two", 50)), *(made(n, "two") for n in (51, 52))]
    assert stage.reads.asked[1:] == [("a", 50, PART)]


def test_a_copy_that_branches_off_before_is_read_from_there(stage: Stage) -> None:
    follower = stage.live(50)
    hear(follower, made(48, "two"))
    stage.reads.answer(48, [], "two", {"one": Ancestor(47, True)})
    stage.reads.answer(48, [48], "two", {"one": Ancestor(47, True)})
    assert stage.reads.asked[1:] == [("a", 50, PART), ("a", 47, PART)]
    assert stage.events == [Broken(Position("two", 47)), made(48, "two")]


def test_held_ones_of_other_epochs(stage: Stage) -> None:
    follower = stage.live(5)
    hear(follower, made(8), PLAIN, made(9), made(1, "two"), made(1, "three"))
    stage.reads.answer(1, [], "two")
    stage.reads.answer(1, [1], "two")
    assert follower.state is FollowState.READING, "there may be a third"
    for _ in range(4):
        if follower.state is FollowState.READING:
            stage.reads.answer(1, [1] if stage.reads.asked[-1][1] == 0 else [], "three")
    assert follower.state is FollowState.LIVE and follower.position == Position("three", 1)
    assert stage.events[0] == Broken(Position("two", 0))
    assert stage.events[-2:] == [Broken(Position("three", 0)), made(1, "three")]
    assert stage.events.count(PLAIN) == 1


def test_a_server_that_has_gone_back(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(1), made(2), made(3), made(2))
    assert stage.reads.asked[1:] == [("a", 3, PART)]
    stage.reads.answer(2)
    assert stage.events[3:] == [Broken(Position("one", 2))]
    hear(follower, made(3))
    assert stage.offsets == [1, 2, 3, 3]


# -- bounds --------------------------------------------------------------------------------------------


def test_what_finds_no_room_is_read(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, *(made(offset) for offset in range(2, HELD_MAX + 12)))
    assert len(follower.held) == HELD_MAX
    top = HELD_MAX + 11
    while follower.state is FollowState.READING:
        since = stage.reads.asked[-1][1]
        assert since is not None
        stage.reads.answer(top, range(since + 1, min(since + PART, top) + 1))
    assert stage.offsets == list(range(1, top + 1))


def test_what_found_no_room_while_the_last_part_was_read(stage: Stage) -> None:
    follower = stage.live()
    hear(follower, made(2), *[PLAIN] * (HELD_MAX - 1), made(3))
    stage.reads.answer(2, [1, 2])
    assert stage.reads.asked[-1] == ("a", 2, PART) and stage.positions == [Position("one", 0)]
    stage.reads.answer(3, [3])
    assert [offset for offset in stage.offsets if offset] == [1, 2, 3]


def test_bytes_are_bounded_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    followers = [stage.follow(name) for name in ("a", "b", "c")]
    for follower in followers:
        hear(follower, *(made(offset, size=1 << 17) for offset in range(1, 20)))
        assert len(follower.held) == 7
    monkeypatch.setattr(module, "ALL_HELD_MAX_BYTES", stage.repair._held_bytes + 300)
    more = stage.follow("d")
    hear(more, PLAIN, PLAIN)
    assert list(more.held) == [PLAIN]
    for follower in (*followers, more):
        stage.repair.forget(follower)
    assert stage.repair._held_bytes == 0 and stage.counters.followed_channels == 0


def test_few_are_read_at_a_time(stage: Stage) -> None:
    followers = [stage.follow(f"c{number}") for number in range(2 * READS + 1)]
    assert len(stage.reads.waiting) == READS
    stage.reads.answer(1)
    assert len(stage.reads.asked) == READS + 1
    while stage.reads.waiting:
        stage.reads.answer(1)
    assert {follower.state for follower in followers} == {FollowState.LIVE}


# -- links ---------------------------------------------------------------------------------------------


def test_a_lost_link_begins_anew(stage: Stage) -> None:
    follower = stage.live(3)
    hear(follower, made(5))
    stage.repair.link_down()
    assert follower.state is FollowState.AWAY
    stage.repair.confirmed(follower)
    stage.reads.answer(5, [4, 5])
    assert stage.events == [], "the answer is older than the link"
    stage.reads.answer(6, [4, 5, 6])
    assert stage.offsets == [4, 5, 6] and stage.positions[-1] == Position("one", 6)


def test_reads_wait_for_the_command_link(stage: Stage) -> None:
    follower = stage.live(3)
    hear(follower, made(5))
    stage.reads.fail(LinkLost("there", "cut"))
    assert follower.state is FollowState.WAITING and len(stage.reads.asked) == 2
    stage.repair.commands_up()
    stage.repair.commands_down()
    stage.reads.answer(5, [4, 5])
    assert stage.offsets == [4, 5]
    hear(follower, made(7))
    assert len(stage.reads.asked) == 3
    stage.repair.commands_up()
    stage.reads.answer(7, [6, 7])
    assert stage.offsets == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (HubUnavailable("there", "LOADING"), module.LATER_SECONDS),
        (HubRefused("there", "NOPERM"), module.REFUSED_SECONDS),
        (ZeroDivisionError("a fault of ours"), module.REFUSED_SECONDS),
    ],
)
def test_a_read_that_fails_is_tried_again(stage: Stage, error: Exception, seconds: float) -> None:
    follower = stage.live(3)
    hear(follower, made(5))
    with captured() as lines:
        for _ in range(3):
            stage.reads.fail(error)
            stage.clock.advance(seconds * 0.9)
            assert not stage.reads.waiting and follower.state is FollowState.WAITING
            stage.clock.advance(seconds * 0.2)
    assert len(lines) == 1 and "history" in lines[0]
    stage.reads.answer(5, [4, 5])
    assert stage.offsets == [4, 5]


def test_a_channel_that_may_not_be_read(stage: Stage) -> None:
    refused: list[Any] = []
    stage.repair.refused = lambda follower, error: refused.append((follower, error))
    follower = stage.follow()
    hear(follower, made(1), PLAIN)
    error = HubRefused("there", "NOPERM")
    stage.reads.fail(error)
    assert refused == [(follower, error)] and stage.events == [made(1), PLAIN]
    assert stage.counters.followed_channels == 0


def test_a_pause(stage: Stage) -> None:
    follower = stage.live(3)
    stage.repair.pause()
    hear(follower, made(5))
    assert len(stage.reads.asked) == 1
    stage.repair.resume()
    stage.reads.answer(5, [4, 5])
    assert stage.offsets == [4, 5]


def test_stop(stage: Stage) -> None:
    follower = stage.live(3)
    hear(follower, made(5))
    stage.reads.fail(HubUnavailable("there", "LOADING"))
    other = stage.follow("b")
    stage.repair.stop()
    stage.repair.stop()
    assert stage.clock.getDelayedCalls() == [] and stage.counters.followed_channels == 0
    assert other.state is FollowState.AWAY


# -- checks --------------------------------------------------------------------------------------------


def test_a_silent_channel_is_checked(stage: Stage) -> None:
    stage.live(3)
    stage.clock.pump([1.0] * 39)
    assert len(stage.reads.asked) == 1
    stage.clock.pump([1.0] * 2)
    assert stage.reads.asked[1:] == [("a", 3, PART)]
    stage.reads.answer(4, [4])
    assert stage.offsets == [4]
    stage.clock.pump([1.0] * 41)
    stage.reads.answer(4)
    assert stage.offsets == [4] and stage.counters.repaired == 1


def test_a_channel_that_is_heard_is_not(stage: Stage) -> None:
    follower = stage.live(3)
    for offset in range(4, 30):
        hear(follower, made(offset))
        stage.clock.pump([1.0] * 10)
    assert len(stage.reads.asked) == 1


# -- any order of events -------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A server with one stream, a link that loses, reads that are answered late."""

    @initialize(size=st.sampled_from([2, 5, 1000]))
    def begin(self, size: int) -> None:
        self.stage = Stage()
        self.size = size
        self.epochs = 0
        self.entries: list[Publication] = []
        self.flying: deque[Event] = deque()
        self.snapshots: dict[Deferred[Stream], tuple[Position, list[Publication]]] = {}
        self.lost_for_good = False
        self.flush()
        self.lost_for_good = False
        self.follower = self.stage.follow()
        self.is_up = True

    @rule()
    def flush(self) -> None:
        self.epochs += 1
        self.lost_for_good = True
        self.top = Position(f"epoch{self.epochs:03d}", 0)
        self.entries = []

    @rule(count=st.integers(1, 4), plain=st.booleans())
    def publish(self, count: int, plain: bool) -> None:
        for _ in range(count):
            self.top = Position(self.top.epoch, self.top.offset + 1)
            self.entries.append(made(self.top.offset, self.top.epoch))
            if len(self.entries) > self.size:
                self.lost_for_good = True
                del self.entries[0]
            if self.is_up:
                self.flying.append(self.entries[-1])
                if plain:
                    self.flying.append(PLAIN)

    @rule(count=st.integers(1, 4))
    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.flying))):
            self.follower.heard(self.flying.popleft())

    @rule(count=st.integers(1, 3))
    def lose(self, count: int) -> None:
        for _ in range(min(count, len(self.flying))):
            self.flying.popleft()

    @rule()
    def execute(self) -> None:
        for reading in self.stage.reads.waiting:
            self.snapshots.setdefault(reading, (self.top, list(self.entries)))

    @precondition(lambda self: self.stage.reads.waiting)
    @rule()
    def answer(self) -> None:
        self.execute()
        reading = self.stage.reads.waiting.popleft()
        position, entries = self.snapshots.pop(reading)
        _, since, limit = self.stage.reads.asked[-1 - len(self.stage.reads.waiting)]
        found = [entry for entry in entries if entry.offset > (since or 0)][:limit]
        reading.callback(Stream(position, found))

    @precondition(lambda self: self.stage.reads.waiting)
    @rule()
    def fail(self) -> None:
        self.snapshots.pop(self.stage.reads.waiting[0], None)
        self.stage.reads.fail(LinkLost("there", "cut"))
        self.stage.repair.commands_up()

    @rule()
    def cut(self) -> None:
        if self.is_up:
            self.stage.repair.link_down()
            self.flying.clear()
        else:
            self.stage.repair.confirmed(self.follower)
        self.is_up = not self.is_up

    @rule()
    def time_passes(self) -> None:
        self.stage.clock.advance(41.0)

    @invariant()
    def all_is_in_order(self) -> None:
        last: Position | None = None
        for event in self.stage.events:
            if isinstance(event, Broken):
                last = event.position
            elif isinstance(event, Publication) and event.offset:
                if last is not None:
                    assert (event.epoch, event.offset) == (last.epoch, last.offset + 1), self.stage.events
                last = Position(event.epoch, event.offset)

    def teardown(self) -> None:
        if not hasattr(self, "is_up"):
            return
        if not self.is_up:
            self.cut()
        for _ in range(6):  # a channel is checked when it was silent from one check to the next
            self.arrive(len(self.flying))
            while self.stage.reads.waiting:
                self.answer()
            self.stage.clock.advance(41.0)
        while self.stage.reads.waiting:
            self.answer()
        assert self.follower.state is FollowState.LIVE
        assert self.follower.position == self.top, "nothing is left out"
        assert not self.follower.held and self.stage.repair._held_bytes == 0
        self.all_is_in_order()
        if not self.lost_for_good:
            assert self.stage.counters.broken == 0
        self.stage.repair.stop()
        assert self.stage.clock.getDelayedCalls() == []


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
