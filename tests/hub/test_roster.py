"""Leases, heartbeats and rows, with a server that the test plays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from spread.hub.api import Incumbent, Load, ShardIdentity
from spread.hub.errors import HubRefused, HubUnavailable, LeaseTaken, LinkLost, ReplyError
from spread.hub.link import CommandProtocol, Link
from spread.hub.process import this_process
from spread.hub.roster import HEARTBEAT_SECONDS, LEASE_SECONDS, MAX_SHARD, Beat, Life, Roster
from tests.fakes import identity
from tests.hub.scripted import FakeEndpoint, Outcome, Wire, answer, captured, handshake, noperm

BEATEN = answer([b"", 0])
LOAD = Load(clients=3, channels=2, addresses={"text": "h:8007"}, ready=True)
OURS, THEIRS = identity("00000000000000aa", 11), identity("00000000000000bb", 22)


def packed(value: Any) -> bytes:
    return msgspec.json.encode(value)


class Stage:
    """A roster on a link that is up."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.endpoint = FakeEndpoint(self.clock)
        self.link = Link(
            self.clock,
            self.endpoint,
            name="there",
            build=lambda: CommandProtocol(self.clock, handshake(reply_seconds=60.0)),
            up=lambda protocol: None,
            down=lambda reason: None,
        )
        self.beats: list[Beat] = []
        self.roster = Roster(self.clock, self.link, "spread", self.beats.append)
        self.lost: list[Incumbent] = []
        self.link.start()
        self.wire = self.connects()

    def connects(self) -> Wire:
        wire = self.endpoint.accept()
        wire.introduces()
        return wire

    def runs(self, coroutine: Any) -> Outcome:
        return Outcome(Deferred.fromCoroutine(coroutine))

    def asked(self) -> tuple[list[bytes], list[bytes]]:
        """Keys and arguments of the one script that was asked for."""
        name, _, count, *rest = self.wire.command()
        assert name == b"EVALSHA"
        return rest[: int(count)], rest[int(count) :]

    def claims(self, shard: int = 0) -> None:
        outcome = self.runs(self.roster.claim(shard, OURS))
        self.asked()
        self.wire.says(answer(packed(OURS)))
        assert outcome.value == shard

    def enters(self, load: Callable[[], Load] = lambda: LOAD) -> None:
        self.claims()
        self.roster.enter(load, self.lost.append)
        self.asked()
        self.wire.says(BEATEN)


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- claims --------------------------------------------------------------------------------------------


def test_a_claim_asks_for_the_lease(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.claim(5, OURS))
    keys, (value, milliseconds, replaceable, gone) = stage.asked()
    assert keys == [b"spread:shard:5", b"spread:lives"]
    assert msgspec.json.decode(value, type=ShardIdentity) == OURS
    assert (milliseconds, replaceable, gone) == (b"8000", b"", b"")
    assert outcome.fired == [] and not stage.roster.is_renewed
    stage.wire.says(answer(value))
    assert outcome.value == 5 and stage.roster.is_renewed


def test_a_number_that_is_taken(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.claim(5, OURS))
    stage.asked()
    stage.wire.says(answer(packed(THEIRS)))
    taken = outcome.value
    assert type(taken) is LeaseTaken and (taken.shard, taken.host, taken.pid) == (5, "here", 22)
    assert not stage.roster.is_renewed


@pytest.mark.parametrize("value", [b"something else", b"{}", b"\xff", b"42"])
def test_a_key_of_somebody_else_is_taken_by_an_unknown(stage: Stage, value: bytes) -> None:
    outcome = stage.runs(stage.roster.claim(5, OURS))
    stage.asked()
    stage.wire.says(answer(value))
    assert type(outcome.value) is LeaseTaken and outcome.value.host == "unknown"


def _gone(machine: str) -> ShardIdentity:
    """A process of this machine that is gone; its pid may have been given to another one."""
    return ShardIdentity(
        incarnation="cc" * 8, host="here", pid=os.getpid(), machine=machine, started="1", version="0"
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_the_number_of_a_process_that_is_gone_is_replaced_at_once(stage: Stage) -> None:
    dead = packed(_gone(this_process("0").machine))
    outcome = stage.runs(stage.roster.claim(5, OURS))
    stage.asked()
    stage.wire.says(answer(dead))
    _, (_, _, replaceable, gone) = stage.asked()
    assert replaceable == dead and gone == b"cc" * 8
    stage.wire.says(answer(packed(OURS)))
    assert outcome.value == 5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_a_gone_one_that_the_server_does_not_replace_is_asked_for_once(stage: Stage) -> None:
    dead = packed(_gone(this_process("0").machine))
    outcome = stage.runs(stage.roster.claim(5, OURS))
    for _ in range(2):
        stage.asked()
        stage.wire.says(answer(dead))
    assert type(outcome.value) is LeaseTaken and stage.wire.commands() == []


def test_auto_takes_the_lowest_that_is_free(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.claim(None, OURS))
    for number in range(3):
        keys, _ = stage.asked()
        assert keys == [b"spread:shard:%d" % number, b"spread:lives"]
        stage.wire.says(answer(packed(OURS if number == 2 else THEIRS)))
    assert outcome.value == 2


def test_auto_when_all_are_taken(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.claim(None, OURS))
    for _ in range(MAX_SHARD + 1):
        stage.wire.commands()
        stage.wire.says(answer(packed(THEIRS)))
    assert type(outcome.value) is HubUnavailable and f"up to {MAX_SHARD} are taken" in str(outcome.value)


@pytest.mark.parametrize(
    ("error", "expected"), [(noperm("key"), HubRefused), ("LOADING the dataset", HubUnavailable)]
)
def test_a_claim_that_redis_refuses(stage: Stage, error: str, expected: type) -> None:
    outcome = stage.runs(stage.roster.claim(None, OURS))
    stage.asked()
    stage.wire.says(answer(error))
    assert type(outcome.value) is expected and error in str(outcome.value)


def test_a_claim_whose_connection_breaks(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.claim(0, OURS))
    stage.wire.lose()
    assert type(outcome.value) is LinkLost


def test_a_claim_without_a_link_says_why(stage: Stage) -> None:
    stage.wire.lose()
    assert "not connected" in str(stage.runs(stage.roster.claim(0, OURS)).value)
    stage.clock.advance(0.2)
    stage.endpoint.refuse(OSError("no route"))
    outcome = stage.runs(stage.roster.claim(0, OURS))
    assert type(outcome.value) is HubUnavailable and "no route" in str(outcome.value)


# -- heartbeats ----------------------------------------------------------------------------------------


def test_a_heartbeat_at_once_and_every_two_seconds(stage: Stage) -> None:
    stage.claims(7)
    clients = iter(range(100))
    stage.roster.enter(lambda: msgspec.structs.replace(LOAD, clients=next(clients)), stage.lost.append)
    for number in range(3):
        keys, (value, milliseconds, shard, row, *rest) = stage.asked()
        assert keys == [
            b"spread:shard:7",
            b"spread:roster",
            b"spread:lives",
            b"spread:register:00000000000000aa",
            b"spread:reaping:00000000000000aa",
        ]
        assert rest == [b"00000000000000aa", b"3600", b"4000", b"16"]
        assert (value, milliseconds, shard) == (packed(OURS), b"8000", b"7")
        assert msgspec.json.decode(row)["load"]["clients"] == number, "asked anew each time"
        stage.wire.says(BEATEN)
        stage.clock.advance(HEARTBEAT_SECONDS - 0.1)
        assert stage.wire.commands() == []
        stage.clock.advance(0.1)


def test_the_lease_counts_from_when_the_heartbeat_was_sent(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.clock.advance(1.5)
    stage.wire.says(BEATEN)  # it took 1.5 s
    stage.clock.pump([0.5] * 13)
    assert not stage.roster.is_renewed, "8 s after it was sent, though not yet after its answer"
    assert LEASE_SECONDS == 8.0


def test_what_a_heartbeat_gives_is_passed_on(stage: Stage) -> None:
    stage.enters()
    assert stage.beats == [Beat(stage.clock.seconds(), Life.KNOWN, [])]
    stage.clock.advance(HEARTBEAT_SECONDS)
    sent_at = stage.clock.seconds()
    stage.clock.advance(0.5)
    stage.wire.commands()
    stage.wire.says(answer([b"", 2, b"dead", b"0", b"\xff", b"1795509585722"]))
    assert stage.beats[1:] == [Beat(sent_at, Life.REAPED, [("dead", "0"), ("\ufffd", "1795509585722")])]


def test_a_heartbeat_that_loses_the_number_gives_nothing(stage: Stage) -> None:
    stage.claims()
    stage.roster.enter(lambda: LOAD, stage.lost.append)
    stage.asked()
    stage.wire.says(answer([packed(THEIRS)]))
    assert stage.beats == [] and len(stage.lost) == 1


def test_an_extra_heartbeat_delays_the_next(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(1.5)
    stage.roster.beat()
    stage.asked()
    stage.wire.says(BEATEN)
    stage.clock.advance(1.9)
    assert stage.wire.commands() == []
    stage.clock.advance(0.1)
    assert len(stage.wire.commands()) == 1


def test_before_entering_there_is_no_heartbeat(stage: Stage) -> None:
    stage.claims()
    stage.roster.beat()
    stage.clock.advance(30.0)
    assert stage.wire.commands() == []


def test_a_number_that_another_has_by_now_is_told_once(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.clock.advance(HEARTBEAT_SECONDS)
    assert len(stage.wire.commands()) == 2
    stage.wire.says(answer([packed(THEIRS)]), answer([packed(THEIRS)]))
    assert stage.lost == [Incumbent(shard=0, identity=THEIRS)]
    assert not stage.roster.is_renewed
    stage.clock.advance(30.0)
    assert stage.wire.commands() == []
    assert stage.runs(stage.roster.leave()).value is None
    assert stage.wire.commands() == [], "there is nothing to give back"


def test_heartbeats_go_on_over_an_outage(stage: Stage) -> None:
    stage.enters()
    stage.wire.lose()
    stage.clock.advance(HEARTBEAT_SECONDS + 0.1)
    stage.wire = stage.connects()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()


def test_a_demoted_master_is_left(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()
    stage.wire.says(answer("READONLY You can't write against a read only replica."))
    assert stage.wire.is_cut
    stage.clock.advance(0)
    assert stage.link.protocol is None


@pytest.mark.parametrize("error", [noperm("key"), "OOM command not allowed", "BUSY a script"])
def test_a_heartbeat_that_is_refused_is_logged(stage: Stage, error: str) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()
    with captured() as lines:
        stage.wire.says(answer(error))
    assert lines == [f"heartbeat refused: {error}"]
    assert not stage.wire.is_cut and stage.lost == []
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()


def test_a_heartbeat_whose_connection_breaks_is_not_logged(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()
    with captured() as lines:
        stage.wire.lose()
    assert lines == []


def test_an_owner_that_fails_is_logged(stage: Stage) -> None:
    def fails(incumbent: Incumbent) -> None:
        raise ZeroDivisionError

    stage.claims()
    stage.roster.enter(lambda: LOAD, fails)
    stage.asked()
    with captured() as lines:
        stage.wire.says(answer([packed(THEIRS)]))
    assert len(lines) == 1 and "heartbeat" in lines[0]


# -- leaving -------------------------------------------------------------------------------------------


def test_leaving_gives_back_the_lease(stage: Stage) -> None:
    stage.enters()
    outcome = stage.runs(stage.roster.leave())
    keys, arguments = stage.asked()
    assert keys == [
        b"spread:shard:0",
        b"spread:roster",
        b"spread:lives",
        b"spread:register:00000000000000aa",
    ]
    assert arguments == [packed(OURS), b"0", b"00000000000000aa"]
    stage.wire.says(answer(1))
    assert outcome.value is None and not stage.roster.is_renewed
    stage.clock.advance(30.0)
    assert stage.wire.commands() == []
    assert stage.runs(stage.roster.leave()).value is None
    assert stage.wire.commands() == []


def test_leaving_without_a_number_or_a_link_is_nothing(stage: Stage) -> None:
    assert stage.runs(stage.roster.leave()).value is None
    stage.enters()
    stage.wire.lose()
    assert stage.runs(stage.roster.leave()).value is None


def test_a_lease_that_cannot_be_given_back_runs_out(stage: Stage) -> None:
    stage.enters()
    outcome = stage.runs(stage.roster.leave())
    stage.asked()
    with captured() as lines:
        stage.wire.lose()
    assert outcome.value is None
    assert len(lines) == 1 and "the lease of shard 0 runs out by itself" in lines[0]


def test_the_answer_to_a_heartbeat_that_comes_after_leaving(stage: Stage) -> None:
    stage.enters()
    stage.clock.advance(HEARTBEAT_SECONDS)
    stage.asked()
    outcome = stage.runs(stage.roster.leave())
    stage.asked()
    stage.wire.says(answer([packed(THEIRS)]), answer(0))
    assert outcome.value is None and stage.lost == []


def test_stop_is_idempotent(stage: Stage) -> None:
    stage.enters()
    for _ in range(2):
        stage.roster.stop()
    stage.clock.advance(60.0)
    assert stage.wire.commands() == [] and stage.clock.getDelayedCalls() == []


# -- the rows ------------------------------------------------------------------------------------------


def row(beaten_at: float, who: ShardIdentity) -> bytes:
    return b"%.6f %b" % (beaten_at, packed({"identity": who, "load": LOAD}))


def test_the_rows_by_number_with_their_ages(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.read())
    assert stage.asked() == ([b"spread:roster"], [b"60"])
    stage.wire.says(answer([b"1000.000000", b"10", row(999.5, THEIRS), b"2", row(993.0, OURS)]))
    rows = outcome.value
    assert [(info.shard, info.identity, info.age_seconds) for info in rows] == [
        (2, OURS, 7.0),
        (10, THEIRS, 0.5),
    ]
    assert rows[0].load == LOAD


def test_a_row_of_an_older_release_has_not_all_fields(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.read())
    stage.asked()
    older = {"clients": 3, "channels": 2, "addresses": {"text": "h:8007"}, "ready": True}
    newer = {**older, "users": 1, "subscriptions": 5, "uptime_seconds": 9, "of_a_later_release": [1]}
    rows = [b"999.0 " + packed({"identity": OURS, "load": load}) for load in (older, newer)]
    stage.wire.says(answer([b"1000.0", b"1", rows[0], b"2", rows[1]]))
    loads = [info.load for info in outcome.value]
    assert (loads[0].users, loads[0].subscriptions, loads[0].uptime_seconds) == (0, 0, 0)
    assert (loads[0].clients, loads[0].ready) == (3, True)
    assert (loads[1].users, loads[1].subscriptions, loads[1].uptime_seconds) == (1, 5, 9)


def test_a_row_that_is_too_old_is_not_shown_and_one_of_the_future_is_new(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.read())
    stage.asked()
    stage.wire.says(answer([b"1000.0", b"1", row(991.9, OURS), b"2", row(1000.5, THEIRS)]))
    assert [(info.shard, info.age_seconds) for info in outcome.value] == [(2, 0.0)]


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (b"1", b"999.0 {not json"),
        (b"1", b'999.0 {"identity": 3}'),
        (b"1", b"999.0 "),
        (b"1", b"garbage"),
        (b"1", row(999.0, OURS).replace(b"999.000000", b"soon")),
        (b"one", row(999.0, OURS)),
    ],
)
def test_a_row_that_cannot_be_read_is_logged_and_left_out(stage: Stage, number: bytes, value: bytes) -> None:
    outcome = stage.runs(stage.roster.read())
    stage.asked()
    with captured() as lines:
        stage.wire.says(answer([b"1000.0", number, value, b"2", row(999.0, THEIRS)]))
    assert [info.shard for info in outcome.value] == [2]
    assert len(lines) == 1 and "of the roster cannot be read" in lines[0]


def test_nobody_is_there(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.read())
    stage.asked()
    stage.wire.says(answer([b"1000.0"]))
    assert outcome.value == []


def test_a_roster_that_cannot_be_read(stage: Stage) -> None:
    outcome = stage.runs(stage.roster.read())
    stage.asked()
    stage.wire.says(answer("BUSY a script"))
    assert type(outcome.value) is ReplyError
    stage.wire.lose()
    assert type(stage.runs(stage.roster.read()).value) is HubUnavailable
