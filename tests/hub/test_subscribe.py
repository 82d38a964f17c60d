"""Subscriptions: batches, members that come and go, refusals, losses, and what is heard."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from spread.hub import subscribe as module
from spread.hub.api import HubCounters
from spread.hub.envelope import KIND_PRESSURE, KIND_PROBE, KIND_PUBLICATION, pack
from spread.hub.errors import HubRefused, HubUnavailable
from spread.hub.link import SubscriberProtocol
from spread.hub.repair import Repair
from spread.hub.subscribe import BATCH, Subscriptions
from tests.fakes import Ears
from tests.hub.scripted import Outcome, Wire, answer, captured, message, noperm, subscriber_wire

PREFIX = b"spread:ch:{"
THEIRS = bytes.fromhex("00000000000000bb")
LINGER_SECONDS = 3.0


def key(channel: str) -> bytes:
    return PREFIX + channel.encode() + b"}"


class Stage:
    """Subscriptions between a receiver and a connection that the test answers."""

    def __init__(self, restored: Any = lambda: None) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.ears = Ears()
        self.counters = HubCounters()
        histories: Any = None  # nothing is followed here
        self.subscriptions = Subscriptions(
            self.clock,
            "there",
            prefix=PREFIX,
            linger_seconds=LINGER_SECONDS,
            reply_seconds=1.0,
            receiver=self.ears,
            counters=self.counters,
            repair=Repair(self.clock, histories, receiver=self.ears, counters=self.counters),
            restored=restored,
        )
        self.connection: SubscriberProtocol | None = None
        self._sequence = 0

    def up(self) -> Wire:
        self.connection, wire = subscriber_wire(self.clock)
        self.connection.closed = lambda protocol, reason: self.subscriptions.link_down()
        self.subscriptions.link_up(self.connection)
        return wire

    def joins(self, *channels: str) -> list[Outcome]:
        return [Outcome(self.subscriptions.subscribe(channel)) for channel in channels]

    def leaves(self, *channels: str) -> None:
        for channel in channels:
            self.subscriptions.unsubscribe(channel)

    def settled(self, wire: Wire, forbidden: bytes | None = None) -> list[list[bytes]]:
        """Answer until nothing more is asked; gives all commands."""
        commands = []
        while asked := wire.confirms(forbidden):
            commands += asked
        return commands

    def says(self, wire: Wire, channel: str, data: bytes, sequence: int | None = None) -> None:
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        wire.says(message(key(channel), pack(KIND_PUBLICATION, 1, THEIRS, sequence, 4, data)))

    def is_empty(self) -> bool:
        """Nothing is kept of what is not subscribed."""
        kept = self.subscriptions
        return not (
            kept._by_key
            or kept._wanted
            or kept._unwanted
            or kept._lingering
            or kept._in_flight
            or kept._restoring
            or self.counters.subscribed_channels
            or self.clock.getDelayedCalls()
        )


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- subscribing ---------------------------------------------------------------------------------------


def test_a_channel_is_heard_when_it_is_confirmed(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("欢迎")
    assert wire.commands() == [[b"SUBSCRIBE", key("欢迎")]]
    assert outcome.fired == []
    wire.says(answer([b"subscribe", key("欢迎"), 1]))
    assert outcome.value is None
    stage.says(wire, "欢迎", b"x")
    ((channel, publication),) = stage.ears.heard
    assert (channel, publication.data, publication.format, publication.shard, publication.session) == (
        *("欢迎", b"x", 1, THEIRS),
        4,
    )
    assert stage.counters.received == 1 and stage.ears.reads == 2


def test_all_of_a_turn_are_one_command(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a", "b", "c")
    assert wire.commands() == [[b"SUBSCRIBE", key("a"), key("b"), key("c")]]


def test_a_second_member_waits_with_the_first_and_then_not_at_all(stage: Stage) -> None:
    wire = stage.up()
    first, second = stage.joins("a", "a")
    wire.commands()
    (third,) = stage.joins("a")
    assert first.fired + second.fired + third.fired == []
    wire.says(answer([b"subscribe", key("a"), 1]))
    (fourth,) = stage.joins("a")
    assert [outcome.value for outcome in (first, second, third, fourth)] == [None] * 4
    assert wire.commands() == [] and stage.counters.subscribed_channels == 1


def test_before_the_link_is_up_it_waits(stage: Stage) -> None:
    (outcome,) = stage.joins("a")
    stage.clock.advance(60.0)
    assert outcome.fired == []
    stage.settled(stage.up())
    assert outcome.value is None


def test_batches_of_512_one_at_a_time(stage: Stage) -> None:
    wire = stage.up()
    outcomes = stage.joins(*(f"c{number}" for number in range(1300)))
    sizes = []
    while commands := wire.commands():
        ((name, *channels),) = commands
        assert name == b"SUBSCRIBE"
        sizes.append(len(channels))
        for channel in channels[:-1]:
            wire.says(answer([b"subscribe", channel, 1]))
        assert wire.commands() == [], "one is not confirmed yet"
        wire.says(answer([b"subscribe", channels[-1], 1]))
    assert sizes == [BATCH, BATCH, 1300 - 2 * BATCH] and BATCH == 512
    assert [outcome.value for outcome in outcomes] == [None] * 1300
    assert stage.counters.subscribed_channels == 1300


def test_who_does_not_want_to_wait_any_more(stage: Stage) -> None:
    wire = stage.up()
    deferred = stage.subscriptions.subscribe("a")
    outcome = Outcome(deferred)
    (other,) = stage.joins("a")
    deferred.cancel()
    assert isinstance(outcome.value, CancelledError)
    stage.settled(wire)
    assert other.value is None


# -- lingering -----------------------------------------------------------------------------------------


def test_a_channel_that_nobody_wants_lingers_and_is_dropped(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a", "b")
    stage.settled(wire)
    stage.leaves("a", "a", "never")
    stage.clock.advance(LINGER_SECONDS - 0.1)
    assert wire.commands() == []
    stage.says(wire, "a", b"x")
    assert stage.ears.words == [b"x"], "it is still heard"
    stage.clock.advance(0.1)
    assert wire.confirms() == [[b"UNSUBSCRIBE", key("a")]]
    stage.says(wire, "a", b"y")
    assert stage.ears.words == [b"x"]
    assert stage.counters.subscribed_channels == 1


def test_each_has_its_own_end(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a", "b", "c")
    stage.settled(wire)
    ends = []
    for channel in "abc":
        stage.leaves(channel)
        stage.clock.advance(1.0)
    for _ in range(40):
        for command in wire.confirms():
            ends.append((round(stage.clock.seconds() - 1_000_000.0, 1), command[1:]))
        stage.clock.advance(0.1)
    assert [(round(at), channels) for at, channels in ends] == [
        (3, [key("a")]),
        (4, [key("b")]),
        (5, [key("c")]),
    ]
    assert stage.is_empty()


def test_who_comes_back_in_time_costs_nothing(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    for _ in range(10):
        stage.leaves("a")
        stage.clock.advance(2.0)
        assert stage.joins("a")[0].value is None
    stage.clock.advance(60.0)
    assert wire.commands() == []
    stage.says(wire, "a", b"x")
    assert stage.ears.words == [b"x"] and stage.clock.getDelayedCalls() == []


def test_who_comes_back_while_its_unsubscribe_is_on_the_way(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    stage.leaves("a")
    stage.clock.advance(LINGER_SECONDS)
    assert wire.commands() == [[b"UNSUBSCRIBE", key("a")]]
    (outcome,) = stage.joins("a")
    assert wire.commands() == [], "one batch at a time"
    wire.says(answer([b"unsubscribe", key("a"), 0]))
    assert outcome.fired == []
    assert wire.confirms() == [[b"SUBSCRIBE", key("a")]]
    assert outcome.value is None
    stage.says(wire, "a", b"x")
    assert stage.ears.words == [b"x"]


def test_who_comes_back_before_its_unsubscribe_has_left(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    stage.leaves("a")
    stage.joins("b")
    assert wire.commands() == [[b"SUBSCRIBE", key("b")]]  # stays unconfirmed for a while
    stage.clock.advance(0.9)
    wire.says(message(b"other", b"noise"))
    for _ in range(5):
        stage.clock.advance(0.5)
        wire.says(message(b"other", b"noise"))
    (outcome,) = stage.joins("a")
    wire.says(answer([b"subscribe", key("b"), 2]))
    assert stage.settled(wire) == [[b"UNSUBSCRIBE", key("a")], [b"SUBSCRIBE", key("a")]]
    assert outcome.value is None


def test_one_that_left_before_it_was_confirmed_is_dropped_after(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    wire.commands()
    stage.leaves("a")
    for _ in range(7):
        stage.clock.advance(0.5)
        wire.says(message(b"other", b"noise"))
    assert wire.commands() == [], "its confirmation is on the way"
    wire.says(answer([b"subscribe", key("a"), 1]))
    assert outcome.value is None
    stage.clock.advance(LINGER_SECONDS)
    assert wire.confirms() == [[b"UNSUBSCRIBE", key("a")]]
    assert stage.is_empty()


def test_one_that_left_before_it_was_asked_is_never_asked(stage: Stage) -> None:
    (outcome,) = stage.joins("a")
    stage.leaves("a")
    stage.clock.advance(LINGER_SECONDS)
    assert type(outcome.value) is HubUnavailable and "left before it was subscribed" in str(outcome.value)
    assert stage.is_empty()
    assert stage.up().commands() == []


def test_many_are_dropped_in_batches(stage: Stage) -> None:
    wire = stage.up()
    channels = [f"c{number}" for number in range(1025)]
    stage.joins(*channels)
    stage.settled(wire)
    stage.leaves(*channels)
    stage.clock.advance(LINGER_SECONDS)
    commands = stage.settled(wire)
    assert [(command[0], len(command) - 1) for command in commands] == [
        (b"UNSUBSCRIBE", 512),
        (b"UNSUBSCRIBE", 512),
        (b"UNSUBSCRIBE", 1),
    ]
    assert stage.is_empty()


def test_nothing_is_left_of_10_000_joins_that_flap(stage: Stage) -> None:
    choose = random.Random(1)
    wire = stage.up()
    inside: set[str] = set()
    for number in range(10_000):
        channel = f"c{choose.randrange(300)}"
        if channel in inside:
            inside.discard(channel)
            stage.leaves(channel)
        else:
            inside.add(channel)
            stage.joins(channel)
        if number % 7 == 0:
            stage.clock.advance(choose.choice([0.0, 0.01, 0.2]))
        if number % 50 == 0:
            wire.confirms()
        if number % 997 == 0:
            wire.lose()
            if number % 2:
                wire = stage.up()
            else:
                stage.clock.advance(1.0)
                wire = stage.up()
        assert len(stage.clock.getDelayedCalls()) <= 3
    stage.settled(wire)
    for channel in inside:
        stage.says(wire, channel, channel.encode())
    assert set(stage.ears.words) == {channel.encode() for channel in inside}
    stage.leaves(*inside)
    stage.clock.advance(LINGER_SECONDS)
    stage.settled(wire)
    assert stage.is_empty()


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forbidden", [0, 1, 255, 256, 300, 511])
def test_halves_find_the_one_that_is_forbidden(stage: Stage, forbidden: int) -> None:
    wire = stage.up()
    outcomes = stage.joins(*(f"c{number}" for number in range(512)))
    with captured() as lines:
        commands = stage.settled(wire, key(f"c{forbidden}"))
    assert len(commands) <= 1 + 2 * 9, "two for each halving"
    refused = outcomes.pop(forbidden).value
    assert type(refused) is HubRefused and f"channel c{forbidden}: NOPERM" in str(refused)
    assert [outcome.value for outcome in outcomes] == [None] * 511
    assert stage.counters.subscribed_channels == 511
    assert len(lines) == 1 and f"channel c{forbidden}" in lines[0]


def test_the_halves_of_a_lost_connection_are_forgotten(stage: Stage) -> None:
    wire = stage.up()
    stage.joins(*(f"c{number}" for number in range(512)))
    for _ in range(3):
        wire.confirms(key("c0"))
    wire.lose()
    assert [len(command) - 1 for command in stage.settled(stage.up())] == [512]


def test_several_forbidden_ones(stage: Stage) -> None:
    wire = stage.up()
    outcomes = stage.joins(*(f"c{number}" for number in range(40)))
    while commands := wire.commands():
        for _, *channels in commands:
            if any(channel.endswith(b"3}") for channel in channels):
                wire.says(answer(noperm()))
            else:
                wire.says(*(answer([b"subscribe", channel, 1]) for channel in channels))
    refused = [number for number, outcome in enumerate(outcomes) if outcome.value is not None]
    assert refused == [3, 13, 23, 33]


def test_a_forbidden_one_may_be_asked_again(stage: Stage) -> None:
    wire = stage.up()
    (first,) = stage.joins("a")
    stage.settled(wire, key("a"))
    (second,) = stage.joins("a")
    stage.settled(wire)
    assert type(first.value) is HubRefused and second.value is None


def test_a_forbidden_one_that_lingers_is_forgotten(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    stage.leaves("a")
    stage.settled(wire, key("a"))
    assert type(outcome.value) is HubRefused
    stage.clock.advance(LINGER_SECONDS)
    assert stage.is_empty()


def test_one_that_became_forbidden_in_an_outage_does_not_hold_up_the_others(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a", "b")
    stage.settled(wire)
    wire.lose()
    stage.settled(stage.up(), key("a"))
    assert stage.subscriptions.is_live and len(stage.ears.missed_seconds) == 1


def test_an_error_that_is_no_refusal_cuts(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    wire.commands()
    wire.says(answer("ERR something else"))
    assert wire.is_cut
    stage.clock.advance(0)
    assert outcome.fired == []
    stage.settled(stage.up())
    assert outcome.value is None


def test_a_refusal_of_what_restored_subscribed_to_hits_no_channel() -> None:
    stage = Stage(restored=lambda: b"spread:hearing")
    outcomes = stage.joins("a")
    with captured() as lines:
        wire = stage.up()
        wire.says(answer(noperm()))
        stage.settled(wire)
    assert outcomes[0].value is None
    assert len(lines) == 1 and "channel spread:hearing: NOPERM" in lines[0]


def test_what_restored_subscribed_to_is_confirmed_once() -> None:
    stage = Stage(restored=lambda: b"spread:hearing")
    wire = stage.up()
    wire.says(answer([b"subscribe", b"spread:hearing", 1]))
    (outcome,) = stage.joins("a")
    stage.settled(wire, key("a"))
    assert type(outcome.value) is HubRefused, "this refusal is the channel's own"


# -- losses --------------------------------------------------------------------------------------------


def test_after_a_loss_all_is_asked_again_and_the_window_is_told_once(stage: Stage) -> None:
    wire = stage.up()
    assert stage.subscriptions.is_live
    stage.joins("a", "b")
    stage.settled(wire)
    stage.clock.advance(2.0)
    stage.says(wire, "a", b"x")  # last heard
    stage.clock.advance(5.0)
    wire.lose()
    assert not stage.subscriptions.is_live
    stage.clock.advance(1.0)
    wire = stage.up()
    assert wire.commands() == [[b"SUBSCRIBE", key("a"), key("b")]]
    wire.says(answer([b"subscribe", key("a"), 1]))
    assert not stage.subscriptions.is_live and stage.ears.missed_seconds == []
    stage.clock.advance(0.5)
    wire.says(answer([b"subscribe", key("b"), 2]))
    assert stage.subscriptions.is_live
    assert stage.ears.missed_seconds == [6.5], "from when the lost connection was last heard"
    stage.joins("c")
    stage.settled(wire)
    assert stage.ears.missed_seconds == [6.5]
    assert (stage.counters.missed_windows, stage.counters.missed_seconds) == (1, 6.5)


def test_a_window_that_is_broken_again_is_one_window(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    for _ in range(3):
        stage.clock.advance(1.0)
        wire.lose()
        wire = stage.up()
        wire.commands()
    stage.settled(wire)
    assert stage.ears.missed_seconds == []
    wire.says(answer([b"subscribe", key("a"), 1]))
    assert stage.ears.missed_seconds == [3.0]


def test_without_subscriptions_a_window_is_told_too(stage: Stage) -> None:
    stage.up().lose()
    stage.clock.advance(2.0)
    stage.up()
    assert stage.ears.missed_seconds == [2.0] and stage.subscriptions.is_live


def test_what_is_joined_in_an_outage_does_not_hold_up_the_restoration_of_the_rest(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    wire.lose()
    (late,) = stage.joins("b")
    wire = stage.up()
    assert wire.commands() == [[b"SUBSCRIBE", key("a"), key("b")]]
    (later,) = stage.joins("c")
    wire.says(answer([b"subscribe", key("a"), 1]), answer([b"subscribe", key("b"), 2]))
    assert late.value is None and later.fired == [] and stage.subscriptions.is_live


def test_a_loss_of_one_that_is_asked(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    wire.commands()
    wire.lose()
    assert outcome.fired == []
    assert stage.settled(stage.up()) == [[b"SUBSCRIBE", key("a")]]
    assert outcome.value is None


def test_a_turn_that_was_waited_for_does_not_end_in_a_second_batch(stage: Stage) -> None:
    wire = stage.up()
    stage.joins(*(f"c{number}" for number in range(600)))
    wire.lose()
    assert len(stage.up().commands()) == 1


def test_a_loss_of_those_that_linger_in_every_state(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("live")
    stage.settled(wire)
    (asked,) = stage.joins("asked")
    wire.commands()
    (wanted,) = stage.joins("wanted")
    stage.leaves("live", "asked", "wanted")
    wire.lose()
    for outcome in (asked, wanted):
        assert type(outcome.value) is HubUnavailable
    assert stage.counters.subscribed_channels == 0
    assert stage.up().commands() == []
    stage.clock.advance(LINGER_SECONDS)
    assert stage.is_empty()


def test_a_loss_while_an_unsubscribe_is_on_the_way_or_waits(stage: Stage) -> None:
    wire = stage.up()
    channels = [f"c{number}" for number in range(600)]
    stage.joins(*channels)
    stage.settled(wire)
    stage.leaves(*channels)
    stage.clock.advance(LINGER_SECONDS)
    assert len(wire.commands()) == 1  # 512 of them; 88 wait
    stage.joins("c0", "c599")
    wire.lose()
    wire = stage.up()
    assert wire.confirms() == [[b"SUBSCRIBE", key("c0"), key("c599")]]
    stage.says(wire, "c0", b"x")
    assert stage.ears.words == [b"x"]


def test_the_restoration_is_told_when_the_last_that_held_it_up_is_dropped(stage: Stage) -> None:
    wire = stage.up()
    channels = [f"c{number}" for number in range(513)]
    stage.joins(*channels)
    stage.settled(wire)
    wire.lose()
    wire = stage.up()
    ((_, *first),) = wire.commands()
    stage.leaves("c512")  # it would come with the second batch
    for _ in range(7):
        stage.clock.advance(0.5)
        wire.says(message(b"other", b"noise"))
    wire.says(*(answer([b"subscribe", channel, 1]) for channel in first))
    assert stage.subscriptions.is_live and wire.commands() == []


def test_a_connection_that_does_not_confirm_is_cut(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    wire.commands()
    stage.clock.advance(0.8)
    assert not wire.is_cut
    stage.clock.advance(0.2)
    assert wire.is_cut
    stage.clock.advance(0)
    assert outcome.fired == [], "the next connection asks again"


def test_a_process_that_stood_still_reads_before_it_cuts(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    wire.commands()
    stage.clock.advance(30.0)
    assert not wire.is_cut
    wire.says(answer([b"subscribe", key("a"), 1]))
    stage.clock.advance(30.0)
    assert outcome.value is None and not wire.is_cut and stage.clock.getDelayedCalls() == []


def test_one_that_is_paused_or_busy_is_not_cut(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    wire.commands()
    assert stage.connection is not None
    stage.connection.pause()
    stage.clock.pump([0.5] * 10)
    assert not wire.is_cut
    stage.connection.resume()
    for _ in range(10):
        wire.says(message(b"other", b"noise"))
        stage.clock.advance(0.5)
    assert not wire.is_cut
    stage.clock.pump([0.5] * 4)
    assert wire.is_cut


# -- what is heard -------------------------------------------------------------------------------------


def test_duplicates_are_dropped(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a", "b")
    stage.settled(wire)
    for sequence, data in ((1, b"one"), (2, b"two"), (1, b"one"), (2, b"two"), (3, b"three")):
        stage.says(wire, "a" if sequence < 3 else "b", data, sequence)
    assert stage.ears.words == [b"one", b"two", b"three"]
    assert (stage.counters.duplicates, stage.counters.received) == (2, 3)


def test_each_shard_has_its_own_sequence_which_outlives_the_connection(stage: Stage) -> None:
    def said(shard: int) -> bytes:
        packed = pack(KIND_PUBLICATION, 1, shard.to_bytes(8), 5, 0, b"%d" % shard)
        return message(key("a"), packed)

    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    wire.says(said(1), said(2))
    wire.lose()
    wire = stage.up()
    stage.settled(wire)
    wire.says(said(1), said(3))
    assert stage.ears.words == [b"1", b"2", b"3"]


def test_old_origins_are_forgotten(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ORIGINS", 8)
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    for shard in range(100):
        wire.says(message(key("a"), pack(KIND_PUBLICATION, 1, shard.to_bytes(8), 1, 0, b"%d" % shard)))
        assert len(stage.subscriptions._last_sequence) <= 8
    assert stage.counters.received == 100
    wire.says(message(key("a"), pack(KIND_PUBLICATION, 1, (99).to_bytes(8), 1, 0, b"again")))
    assert stage.counters.duplicates == 1, "the latest are remembered"


def test_pressure_is_passed_on(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    wire.says(message(key("a"), pack(KIND_PRESSURE, 0, THEIRS, 0, 0, b"")))
    assert stage.ears.pressed_channels == ["a"]
    assert stage.ears.words == [] and stage.counters.malformed == 0


@pytest.mark.parametrize(
    ("payload", "malformed", "unknown"),
    [
        (b"", 1, 0),
        (b"\x02short", 1, 0),
        (pack(KIND_PROBE, 0, THEIRS, 0, 0, b""), 1, 0),
        (pack(77, 0, THEIRS, 1, 0, b"x"), 1, 0),
        (b"\x01" + bytes(40), 0, 1),
        (b"plain text of somebody else", 0, 1),
    ],
)
def test_what_is_not_ours_is_counted(stage: Stage, payload: bytes, malformed: int, unknown: int) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    with captured() as lines:
        wire.says(message(key("a"), payload))
    assert (stage.counters.malformed, stage.counters.unknown_versions) == (malformed, unknown)
    assert stage.ears.words == [] and stage.counters.received == 0 and not wire.is_cut
    assert len(lines) == 1 and "channel a" in lines[0]


def test_what_is_not_ours_is_logged_once_a_minute_each(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("a")
    stage.settled(wire)
    with captured() as lines:
        for _ in range(121):
            wire.says(message(key("a"), b"\x01"), message(key("a"), b""), message(key("a"), b"\x03"))
            stage.clock.advance(1.0)
    assert len(lines) == 2 * 3
    assert (stage.counters.malformed, stage.counters.unknown_versions) == (121, 242)


def test_a_probe_or_a_message_of_an_unsubscribed_channel_is_nothing(stage: Stage) -> None:
    wire = stage.up()
    wire.says(message(b"spread:probe:aa", pack(KIND_PROBE, 0, THEIRS, 0, 0, b"")))
    stage.says(wire, "never", b"x")
    assert stage.ears.heard == [] and stage.counters == HubCounters()


# -- stop ----------------------------------------------------------------------------------------------


def test_stop_in_every_state(stage: Stage) -> None:
    wire = stage.up()
    stage.joins("live", "lingers")
    stage.settled(wire)
    outcomes = stage.joins("asked")
    wire.commands()
    stage.leaves("lingers")
    outcomes += stage.joins("wanted")
    stage.subscriptions.stop()
    outcomes += stage.joins("late", "live")
    stage.leaves("live")
    stage.subscriptions.stop()
    for outcome in outcomes:
        assert type(outcome.value) is HubUnavailable and "is stopping" in str(outcome.value)
    assert stage.clock.getDelayedCalls() == [] and not stage.subscriptions.is_live
    # What still comes is harmless.
    wire.says(answer([b"subscribe", key("asked"), 1]), answer(noperm()))
    stage.says(wire, "live", b"x")
    wire.lose()
    assert wire.commands() == [] and stage.clock.getDelayedCalls() == []


def test_stop_before_the_turn_is_over(stage: Stage) -> None:
    wire = stage.up()
    (outcome,) = stage.joins("a")
    stage.subscriptions.stop()
    assert type(outcome.value) is HubUnavailable
    assert wire.commands() == [] and stage.clock.getDelayedCalls() == []


def test_who_fails_at_a_stop_may_leave_in_that_moment(stage: Stage) -> None:
    deferred = stage.subscriptions.subscribe("a")
    deferred.addErrback(lambda failure: stage.subscriptions.unsubscribe("a"))
    (other,) = stage.joins("b")
    stage.subscriptions.stop()
    assert type(other.value) is HubUnavailable
