"""The journal: every line of its table, its bounds, and what holds for any order of events."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs
from twisted.internet.task import Clock

from spread.hub.api import (
    ClientInfo,
    Format,
    History,
    HubCounters,
    Joined,
    Left,
    Position,
    Publication,
    PublishOptions,
)
from spread.hub.envelope import KIND_PUBLICATION, unpack
from spread.hub.errors import HubError, HubRefused, HubUnavailable, JournalFull, LinkLost, ReplyError
from spread.hub.publish import Journal, JournalLimits
from spread.hub.scripts import script
from tests.hub.scripted import Outcome, noperm

SHARD = bytes.fromhex("00000000000000aa")


class Lane:
    """A connection as the journal sees it; the test is the server.

    ``taken`` is what the server has given to the subscribers, as ``(sequence, data)`` in its order.
    """

    def __init__(self, taken: list[tuple[int, bytes]]) -> None:
        self.taken = taken
        self.is_open = True
        self.waiting: deque[tuple[Any, tuple[int, bytes]]] = deque()

    def submit(self, waiter: Any, *command: Any) -> None:
        name, key, packed = command
        assert name == b"PUBLISH" and key == b"ch"
        if not self.is_open:
            waiter.errback(LinkLost("there", "cut"))
            return
        kind, sequence, publication = unpack(packed)
        assert (kind, publication.shard) == (KIND_PUBLICATION, SHARD)
        self.waiting.append((waiter, (sequence, publication.data)))

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        return [sent for _, sent in self.waiting]

    def takes(self, count: int = 1) -> None:
        for _ in range(count):
            waiter, sent = self.waiting.popleft()
            self.taken.append(sent)
            waiter.callback(1)

    def says(self, error: str) -> None:
        waiter, _ = self.waiting.popleft()
        waiter.errback(ReplyError(error))

    def cut(self, taken: int = 0) -> None:
        """The connection breaks; the server had taken some of what it has not answered."""
        self.is_open = False
        self.taken.extend(self.sent[:taken])

    def lost(self) -> None:
        waiting, self.waiting = self.waiting, deque()
        for waiter, _ in waiting:
            waiter.errback(LinkLost("there", "cut"))


class Stage:
    """A journal, the server it publishes to, and the counters."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.counters = HubCounters()
        given = JournalLimits(**{"publish_seconds": 5.0, "max_publications": 8, "max_bytes": 100, **limits})
        self.journal = Journal(self.clock, "there", SHARD, given, self.counters)  # type: ignore[arg-type]
        self.taken: list[tuple[int, bytes]] = []
        self.lane: Lane | None = None

    def publish(self, *words: bytes) -> list[Outcome]:
        return [Outcome(self.journal.publish(b"ch", data, Format.TEXT, 7)) for data in words]

    def up(self) -> Lane:
        self.lane = Lane(self.taken)
        self.journal.link_up(self.lane)  # type: ignore[arg-type]
        return self.lane

    def down(self, taken: int = 0) -> None:
        assert self.lane is not None
        if self.lane.is_open:
            self.lane.cut(taken)
        self.lane.lost()
        self.lane = None
        self.journal.link_down()

    @property
    def heard(self) -> list[bytes]:
        """What a subscriber hears that drops what it had, as ``subscribe.py`` does."""
        heard, last = [], 0
        for sequence, data in self.taken:
            if sequence > last:
                last = sequence
                heard.append(data)
        return heard


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- the table -----------------------------------------------------------------------------------------


def test_waiting_to_sent_when_the_link_comes_up(stage: Stage) -> None:
    outcomes = stage.publish(b"one", b"two")
    assert (stage.counters.journal_publications, stage.counters.journal_bytes) == (2, 6)
    lane = stage.up()
    assert lane.sent == [(1, b"one"), (2, b"two")]
    assert [outcome.fired for outcome in outcomes] == [[], []]


def test_sent_to_done_when_redis_answers(stage: Stage) -> None:
    lane = stage.up()
    first, second = stage.publish(b"one", b"two")
    lane.takes()
    assert first.value is None and second.fired == []
    lane.takes()
    assert second.value is None
    assert (stage.counters.journal_publications, stage.counters.journal_bytes) == (0, 0)
    assert (stage.counters.published, stage.counters.publish_retries) == (2, 0)


def test_sent_to_waiting_when_the_connection_breaks_keeps_the_sequence(stage: Stage) -> None:
    stage.up()
    outcomes = stage.publish(b"one", b"two", b"three")
    stage.down(taken=2)
    outcomes += stage.publish(b"four")
    assert [outcome.fired for outcome in outcomes] == [[]] * 4
    lane = stage.up()
    assert lane.sent == [(1, b"one"), (2, b"two"), (3, b"three"), (4, b"four")]
    lane.takes(4)
    assert [outcome.value for outcome in outcomes] == [None] * 4
    assert stage.heard == [b"one", b"two", b"three", b"four"], "the first two are dropped the second time"
    assert stage.counters.publish_retries == 3


def test_sent_to_waiting_when_the_server_says_later_renews_the_sequence(stage: Stage) -> None:
    lane = stage.up()
    outcomes = stage.publish(b"one", b"two")
    lane.says("LOADING Redis is loading the dataset in memory")
    lane.takes()
    assert lane.sent == []
    stage.clock.advance(0.1)
    assert lane.sent == [(3, b"one")]
    lane.takes()
    assert [outcome.value for outcome in outcomes] == [None, None]
    assert stage.heard == [b"two", b"one"]


def test_what_comes_after_a_later_waits_behind_it(stage: Stage) -> None:
    lane = stage.up()
    stage.publish(b"one")
    lane.says("BUSY a script")
    stage.publish(b"two", b"three")
    assert lane.sent == []
    stage.clock.advance(0.1)
    assert lane.sent == [(2, b"one"), (3, b"two"), (4, b"three")]


def test_it_asks_again_only_when_all_have_been_answered(stage: Stage) -> None:
    lane = stage.up()
    stage.publish(b"one", b"two")
    lane.says("BUSY a script")
    stage.clock.advance(0.1)
    assert lane.sent == [(2, b"two")], "its answer is still to come"
    lane.says("BUSY a script")
    stage.clock.advance(0.1)
    assert lane.sent == [(3, b"one"), (4, b"two")], "in the order they were made"


def test_put_off_and_then_cut(stage: Stage) -> None:
    lane = stage.up()
    stage.publish(b"one", b"two")
    lane.says("BUSY a script")
    stage.publish(b"three")
    stage.down()
    assert stage.up().sent == [(2, b"two"), (3, b"one"), (4, b"three")]


def test_later_for_a_second_try_is_told_to_the_publisher(stage: Stage) -> None:
    stage.up()
    (outcome,) = stage.publish(b"one")
    stage.down()
    stage.up().says("READONLY You can't write against a read only replica.")
    assert type(outcome.value) is HubUnavailable and "whether it was taken is unknown" in str(outcome.value)
    assert stage.counters.publish_failures == 1


def test_sent_to_done_when_an_acl_forbids_it(stage: Stage) -> None:
    lane = stage.up()
    (outcome,) = stage.publish(b"one")
    lane.says(noperm())
    assert type(outcome.value) is HubRefused and "NOPERM" in str(outcome.value)
    assert (stage.counters.publish_failures, stage.counters.published) == (1, 0)


def test_waiting_to_done_at_the_deadline(stage: Stage) -> None:
    (early,) = stage.publish(b"early")
    stage.clock.advance(2.0)
    (late,) = stage.publish(b"late")
    stage.clock.advance(3.0)
    assert type(early.value) is HubUnavailable and "it is away for 5 s" in str(early.value)
    assert late.fired == []
    assert stage.up().sent == [(1, b"late")], "what is out of time is not sent"


def test_sent_to_done_at_the_deadline(stage: Stage) -> None:
    lane = stage.up()
    first, second = stage.publish(b"one", b"two")
    stage.clock.advance(5.0)
    for outcome in (first, second):
        assert type(outcome.value) is HubUnavailable and "it has not answered for 5 s" in str(outcome.value)
    lane.takes(2)
    assert len(first.fired) == 1 and stage.counters.published == 0
    assert (stage.counters.journal_publications, stage.counters.journal_bytes) == (0, 0)


def test_what_is_out_of_time_is_not_sent_again(stage: Stage) -> None:
    stage.up()
    (outcome,) = stage.publish(b"one")
    stage.clock.advance(5.0)
    stage.down()
    assert stage.up().sent == [] and len(outcome.fired) == 1


def test_put_off_until_the_deadline(stage: Stage) -> None:
    lane = stage.up()
    (outcome,) = stage.publish(b"one")
    while not outcome.fired:
        if lane.sent:
            lane.says("LOADING Redis is loading the dataset in memory")
        stage.clock.advance(0.1)
    assert type(outcome.value) is HubUnavailable
    assert 999_999.9 + 5.0 <= stage.clock.seconds() <= 1_000_000.2 + 5.0
    stage.clock.advance(1.0)
    assert stage.clock.getDelayedCalls() == []


def test_one_made_between_cut_and_loss_comes_after_those_before_the_cut(stage: Stage) -> None:
    lane = stage.up()
    stage.publish(b"one", b"two")
    lane.cut(taken=1)
    stage.publish(b"three")
    stage.down()
    stage.publish(b"four")
    assert stage.up().sent == [(1, b"one"), (2, b"two"), (3, b"three"), (4, b"four")]


# -- what is kept, and what is published once ------------------------------------------------------------

KEPT = PublishOptions(history=History(10, 20, 30))
POSITION = b"0000000000000007abcdefgh"


class ScriptLane:
    """A connection that notes the commands as they are."""

    generation = b"g"

    def __init__(self) -> None:
        self.commands: list[list[Any]] = []
        self.waiting: deque[Any] = deque()

    def submit(self, waiter: Any, *command: Any) -> None:
        self.commands.append(list(command))
        self.waiting.append(waiter)

    def says(self, *replies: Any) -> None:
        for reply in replies:
            waiter = self.waiting.popleft()
            if isinstance(reply, str):
                waiter.errback(ReplyError(reply))
            else:
                waiter.callback(reply)

    def lost(self) -> None:
        while self.waiting:
            self.waiting.popleft().errback(LinkLost("there", "cut"))


def scripted(stage: Stage) -> ScriptLane:
    lane = ScriptLane()
    stage.journal.link_up(lane)  # type: ignore[arg-type]
    return lane


def kept(stage: Stage, data: bytes, **more: Any) -> Outcome:
    options = structs.replace(KEPT, **more)
    keys = (b"meta", b"stream", b"result") if options.idempotency_key else (b"meta", b"stream")
    return Outcome(stage.journal.publish(b"ch", data, Format.JSON, 7, options, keys))


def once(stage: Stage, data: bytes) -> Outcome:
    options = PublishOptions(idempotency_key="k")
    return Outcome(stage.journal.publish(b"ch", data, Format.JSON, 7, options, (b"result",)))


def test_a_kept_one_is_a_script_and_has_a_position(stage: Stage) -> None:
    lane = scripted(stage)
    info = ClientInfo("u", "c")
    outcomes = [
        kept(stage, b"1", info=info, version=5, version_epoch="e"),
        kept(stage, b"2", idempotency_key="k"),
    ]
    source, digest = script("publish")
    first, second = lane.commands
    assert first[:6] == [b"EVAL", source, 2, b"meta", b"stream", b"ch"]
    assert second[:7] == [b"EVALSHA", digest, 3, b"meta", b"stream", b"result", b"ch"]
    head, tail, *rest = first[6:]
    *rest, epoch, generation, fate, before = rest
    assert rest == [10, 20, 30, 1, b"0", b"00000000000000000005", "e", 300]
    assert (generation, fate, before) == (b"g", b"l", 0)
    assert len(epoch) == 8 and epoch.isalpha() and epoch != second[-4]
    assert second[-1] == 1, "the one before it is on its way"
    assert second[-8:-4] == [b"0", b"", "", 300]
    assert unpack(head + POSITION + tail) == (
        *(KIND_PUBLICATION, 1),
        Publication(b"1", Format.JSON, SHARD, 7, 7, "abcdefgh", info),
    )
    lane.says(POSITION, POSITION)
    assert [outcome.value for outcome in outcomes] == [Position("abcdefgh", 7)] * 2
    assert stage.counters.published == 2 and stage.counters.journal_bytes == 0


def test_what_is_published_once_without_history(stage: Stage) -> None:
    lane = scripted(stage)
    outcomes = [once(stage, b"1"), once(stage, b"2")]
    source, digest = script("publish_once")
    first, second = lane.commands
    assert first[:5] == [b"EVAL", source, 1, b"result", b"ch"] and first[6] == 300
    assert second[:5] == [b"EVALSHA", digest, 1, b"result", b"ch"]
    assert unpack(first[5]) == (KIND_PUBLICATION, 1, Publication(b"1", Format.JSON, SHARD, 7))
    lane.says(b"", POSITION)
    assert [outcome.value for outcome in outcomes] == [None, Position("abcdefgh", 7)]


def test_who_published_counts_against_the_bytes(stage: Stage) -> None:
    options = PublishOptions(info=ClientInfo("u" * 95, "c"))
    outcome = Outcome(stage.journal.publish(b"ch", b"x", Format.JSON, 7, options))
    assert type(outcome.value) is JournalFull and stage.counters.journal_bytes == 0


def test_a_second_try_says_so(stage: Stage) -> None:
    lane = scripted(stage)
    outcomes = [kept(stage, b"1"), once(stage, b"2"), kept(stage, b"3")]
    lane.says(POSITION)
    lane.lost()
    stage.journal.link_down()
    lane = scripted(stage)
    assert [command[0] for command in lane.commands] == [b"EVAL", b"EVAL"]
    assert unpack(lane.commands[0][5])[1] == 2
    assert lane.commands[1][11:13] == [3, b"1"]
    lane.says(b"", POSITION)
    assert [outcome.value for outcome in outcomes] == [Position("abcdefgh", 7), None, Position("abcdefgh", 7)]


def test_a_script_that_the_server_has_forgotten(stage: Stage) -> None:
    lane = scripted(stage)
    kept(stage, b"1")
    lane.says(POSITION)
    outcomes = [kept(stage, b"2"), kept(stage, b"3")]
    lane.says("NOSCRIPT No matching script.")
    outcomes.append(kept(stage, b"4"))
    lane.says("NOSCRIPT No matching script.")
    stage.clock.advance(0.1)
    assert [command[0] for command in lane.commands[3:]] == [b"EVAL", b"EVALSHA", b"EVALSHA"]
    assert [command[7] for command in lane.commands[3:]] == [b"2", b"3", b"4"]
    lane.says(POSITION, POSITION, POSITION)
    assert [outcome.value for outcome in outcomes] == [Position("abcdefgh", 7)] * 3


def test_a_server_without_room(stage: Stage) -> None:
    lane = scripted(stage)
    full, odd = kept(stage, b"1"), kept(stage, b"2")
    lane.says("OOM command not allowed when used memory > 'maxmemory'.", "WRONGTYPE Operation")
    assert type(full.value) is HubUnavailable and "OOM" in str(full.value)
    assert type(odd.value) is HubRefused


# -- announcements ---------------------------------------------------------------------------------------

ANN = ClientInfo("ann", "c1")


def announced(stage: Stage, event: Joined | Left | None = None) -> Outcome:
    return Outcome(stage.journal.announce(b"ch", event or Joined(ANN)))


def test_an_announcement_is_sent_in_order_and_not_counted(stage: Stage) -> None:
    lane = scripted(stage)
    stage.publish(b"1")
    outcomes = [announced(stage), announced(stage, Left(ANN))]
    stage.publish(b"2")
    found = [
        (kind, sequence, publication.data)
        for kind, sequence, publication in map(unpack, (c[2] for c in lane.commands))
    ]
    assert found == [(1, 1, b"1"), (4, 0, b""), (5, 0, b""), (1, 2, b"2")]
    assert unpack(lane.commands[1][2])[2].info == ANN
    lane.says(1, 1, 1, 1)
    assert [outcome.value for outcome in outcomes] == [None, None]
    assert stage.counters.published == 2 and stage.counters.journal_bytes == 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("LOADING", HubUnavailable), ("ERR odd", HubUnavailable), (noperm(), HubRefused)],
)
def test_an_announcement_that_is_not_taken(stage: Stage, reply: str, kind: type[Exception]) -> None:
    lane = scripted(stage)
    outcome = announced(stage)
    lane.says(reply)
    assert type(outcome.value) is kind
    stage.clock.advance(1.0)
    assert len(lane.commands) == 1


def test_an_announcement_is_made_once(stage: Stage) -> None:
    lane = scripted(stage)
    sent = announced(stage)
    stage.publish(b"1")
    lane.says(1)
    assert sent.value is None
    broken = announced(stage)
    lane.waiting.popleft().errback(ReplyError("BUSY a script"))
    waiting = announced(stage)
    assert len(lane.commands) == 3 and waiting.fired == []
    lane.lost()
    stage.journal.link_down()
    assert type(broken.value) is type(waiting.value) is HubUnavailable
    assert [command[0] for command in scripted(stage).commands] == [b"PUBLISH"]


# -- bounds --------------------------------------------------------------------------------------------


def test_too_many_are_refused_at_once(stage: Stage) -> None:
    *_, last, more = stage.publish(*[b"x"] * 9)
    assert last.fired == [] and type(more.value) is JournalFull
    assert stage.counters.journal_publications == 8 and stage.counters.publish_failures == 1
    stage.up().takes()
    assert stage.publish(b"y")[0].fired == []


def test_too_many_bytes_are_refused_at_once(stage: Stage) -> None:
    fits, more, small = stage.publish(b"x" * 90, b"x" * 11, b"x" * 10)
    assert fits.fired == [] and type(more.value) is JournalFull and small.fired == []
    assert stage.counters.journal_bytes == 100


def test_one_that_need_not_wait_is_taken_whatever_its_size(stage: Stage) -> None:
    assert type(stage.publish(b"x" * 101)[0].value) is JournalFull, "while the hub is away"
    lane = stage.up()
    large, next_one = stage.publish(b"x" * 101, b"y")
    assert type(next_one.value) is JournalFull
    lane.takes()
    assert large.value is None and stage.counters.journal_bytes == 0


def test_a_long_outage_keeps_nothing() -> None:
    stage = Stage(max_publications=1000, max_bytes=10_000)
    outcomes: list[Outcome] = []
    for number in range(3000):
        outcomes += stage.publish(b"%d" % number)
        stage.clock.advance(0.05)
    assert sum(len(outcome.fired) for outcome in outcomes) == 3000 - stage.counters.journal_publications
    assert stage.counters.journal_publications <= 101
    assert len(stage.journal._unsent) <= 101 and len(stage.journal._open) <= 101


# -- stop ----------------------------------------------------------------------------------------------


def test_stop_fails_what_is_left_and_what_comes(stage: Stage) -> None:
    lane = stage.up()
    outcomes = stage.publish(b"sent", b"put off")
    lane.says("BUSY a script")
    outcomes += stage.publish(b"waits")
    stage.journal.stop()
    outcomes += stage.publish(b"late")
    stage.journal.stop()
    for outcome in outcomes:
        assert type(outcome.value) is HubUnavailable and "is stopping" in str(outcome.value)
    lane.takes()
    stage.down()
    assert stage.clock.getDelayedCalls() == []
    assert stage.counters.journal_publications == stage.counters.journal_bytes == 0


def test_a_publisher_that_publishes_from_its_failure(stage: Stage) -> None:
    again: list[Outcome] = []

    def once_more(failure: Any) -> None:
        failure.trap(HubUnavailable)
        again.extend(stage.publish(b"again"))

    stage.journal.publish(b"ch", b"one", Format.TEXT, 0).addErrback(once_more)
    stage.clock.advance(5.0)
    assert stage.up().sent == [(1, b"again")]
    stage.clock.advance(5.0)
    assert type(again[0].value) is HubUnavailable


def test_stop_from_a_failure(stage: Stage) -> None:
    first = stage.journal.publish(b"ch", b"one", Format.TEXT, 0)
    first.addErrback(lambda failure: stage.journal.stop())
    (second,) = stage.publish(b"two")
    stage.clock.advance(5.0)
    assert "is stopping" in str(second.value) and stage.clock.getDelayedCalls() == []


# -- any order of events -------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Publications are numbered; the number is their data."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(max_publications=12, max_bytes=1000)
        self.outcomes: list[Outcome] = []
        self.made_at: list[float] = []
        # Who may overtake a publication: those on the connection when it was answered "later".
        self.may_overtake: dict[int, set[int]] = {}

    @property
    def lane(self) -> Lane | None:
        return self.stage.lane

    @property
    def is_answering(self) -> bool:
        return self.lane is not None and self.lane.is_open and bool(self.lane.waiting)

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.made_at.append(self.stage.clock.seconds())
            self.outcomes += self.stage.publish(b"%d" % len(self.outcomes))

    @precondition(lambda self: self.lane is None)
    @rule()
    def link_up(self) -> None:
        self.stage.up()

    @precondition(lambda self: self.lane is not None)
    @rule(taken=st.integers(0, 5))
    def link_down(self, taken: int) -> None:
        self.stage.down(taken)

    @precondition(lambda self: self.lane is not None and self.lane.is_open)
    @rule(taken=st.integers(0, 5))
    def cut(self, taken: int) -> None:
        assert self.lane is not None
        self.lane.cut(taken)

    @precondition(lambda self: self.is_answering)
    @rule(count=st.integers(1, 4))
    def takes(self, count: int) -> None:
        assert self.lane is not None
        self.lane.takes(min(count, len(self.lane.waiting)))

    @precondition(lambda self: self.is_answering)
    @rule(count=st.integers(1, 3))
    def says_later(self, count: int) -> None:
        assert self.lane is not None
        for _ in range(min(count, len(self.lane.waiting))):
            (_, data), *others = self.lane.sent
            self.may_overtake.setdefault(int(data), set()).update(int(other) for _, other in others)
            self.lane.says("LOADING Redis is loading the dataset in memory")

    @rule(seconds=st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    @invariant()
    def each_ends_at_most_once_and_in_time(self) -> None:
        now = self.stage.clock.seconds()
        for outcome, made_at in zip(self.outcomes, self.made_at, strict=True):
            assert len(outcome.fired) <= 1
            assert outcome.fired or now < made_at + 5.0
            if outcome.fired:
                assert outcome.value is None or isinstance(outcome.value, HubError)

    @invariant()
    def what_is_reported_as_taken_is_heard(self) -> None:
        heard = set(self.stage.heard)
        for number, outcome in enumerate(self.outcomes):
            if outcome.fired and outcome.value is None:
                assert b"%d" % number in heard

    @invariant()
    def nothing_is_heard_twice(self) -> None:
        assert len(self.stage.heard) == len(set(self.stage.heard))

    @invariant()
    def order_is_kept_but_for_what_was_put_off(self) -> None:
        numbers = [int(data) for data in self.stage.heard]
        for place, number in enumerate(numbers):
            for sooner in numbers[:place]:
                if sooner > number:
                    assert sooner in self.may_overtake.get(number, ()), numbers

    @invariant()
    def the_bounds_count_what_is_open(self) -> None:
        is_open = [number for number, outcome in enumerate(self.outcomes) if not outcome.fired]
        counters = self.stage.counters
        assert counters.journal_publications == len(is_open) <= 12
        assert counters.journal_bytes == sum(len(b"%d" % number) for number in is_open)

    def teardown(self) -> None:
        stage = self.stage
        if stage.lane is not None and not stage.lane.is_open:
            stage.down()
        lane = stage.lane or stage.up()
        while any(not outcome.fired for outcome in self.outcomes):
            lane.takes(len(lane.waiting))
            stage.clock.advance(0.1)
        lane.takes(len(lane.waiting))  # what was out of time before it was answered
        for check in (
            self.each_ends_at_most_once_and_in_time,
            self.what_is_reported_as_taken_is_heard,
            self.nothing_is_heard_twice,
            self.order_is_kept_but_for_what_was_put_off,
            self.the_bounds_count_what_is_open,
        ):
            check()
        assert stage.journal._in_flight == 0
        stage.journal.stop()
        assert stage.clock.getDelayedCalls() == []


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
