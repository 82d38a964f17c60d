"""Connections to Redis: the lane of commands, the subscriber, and the link that keeps them alive."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.task import Clock

from spread.hub.errors import HubError, HubMisconfigured, HubRefused, HubUnavailable, LinkLost, ReplyError
from spread.hub.link import CommandProtocol, Link, LinkState, SubscriberProtocol
from tests.hub.scripted import (
    OK,
    FakeEndpoint,
    Outcome,
    Wire,
    answer,
    captured,
    command_wire,
    handshake,
    message,
    noperm,
    subscriber_wire,
)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_000_000.0)  # as a reactor's, it does not begin at 0
    return clock


# -- the lane ------------------------------------------------------------------------------------------


def test_all_commands_of_a_turn_leave_in_one_write(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    for number in range(3):
        protocol.execute_command(b"ECHO", number)
    assert wire.writes == []
    assert wire.commands() == [[b"ECHO", b"%d" % number] for number in range(3)]
    assert len(wire.writes) == 1
    protocol.execute_command(b"ECHO", 3)
    assert wire.commands() == [[b"ECHO", b"3"]]
    assert len(wire.writes) == 2


def test_the_socket_is_told_to_send_at_once_and_to_notice_dead_peers(clock: Clock) -> None:
    assert command_wire(clock)[1].options == ["no delay", "keep alive"]


def test_replies_are_matched_in_order_however_they_are_cut(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    outcomes = [Outcome(protocol.execute_command(b"GET", key)) for key in "abcd"]
    data = answer(b"\xff1") + answer("WRONGTYPE no") + answer([b"x", 3, None]) + answer(None)
    for position in range(len(data)):
        wire.says(data[position : position + 1])
    first, second, third, fourth = (outcome.value for outcome in outcomes)
    assert (first, third, fourth) == (b"\xff1", [b"x", 3, None], None), "bytes stay bytes"
    assert isinstance(second, ReplyError) and str(second) == "WRONGTYPE no"
    assert not wire.is_cut


def test_numbers_are_not_made_of_bytes(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    outcome = Outcome(protocol.execute_command(b"GET", b"key"))
    wire.says(answer(b"42"))
    assert outcome.value == b"42"


def test_post_processing_of_txredisapi_is_done(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    outcome = Outcome(protocol.execute_command(b"GET", b"key", post_proc=int))
    wire.says(answer(b"42"))
    assert outcome.value == 42


def test_a_command_on_a_closed_connection_fails_at_once(clock: Clock) -> None:
    protocol = CommandProtocol(clock, handshake())
    assert "not connected" in str(Outcome(protocol.execute_command(b"PING")).value)
    protocol, wire = command_wire(clock)
    protocol.cut("because")
    outcome = Outcome(protocol.execute_command(b"PING"))
    assert isinstance(outcome.value, LinkLost) and "because" in str(outcome.value)
    assert wire.commands() == []


def test_who_waits_when_the_connection_breaks_fails_with_its_reason(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    reasons: list[str] = []
    protocol.closed = lambda protocol, reason: reasons.append(reason)
    outcomes = [Outcome(protocol.execute_command(b"PING")) for _ in range(3)]
    wire.lose()
    assert reasons == ["Connection was closed cleanly"]
    for outcome in outcomes:
        assert isinstance(outcome.value, LinkLost)
        assert "Connection was closed cleanly" in str(outcome.value)
    assert wire.commands() == []
    assert clock.getDelayedCalls() == []


def test_a_cut_tells_its_own_reason_once(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    reasons: list[str] = []
    protocol.closed = lambda protocol, reason: reasons.append(reason)
    protocol.cut("one")
    protocol.cut("two")
    wire.says(OK)  # what was read before the cut took effect
    clock.advance(0)
    assert reasons == ["one"] and wire.is_lost


def test_one_timer_watches_the_whole_lane(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    for _ in range(1000):
        protocol.execute_command(b"PING").addErrback(lambda failure: None)
    wire.commands()
    assert len(clock.getDelayedCalls()) == 1
    wire.says(OK * 1000)
    clock.advance(5.0)
    assert clock.getDelayedCalls() == [] and not wire.is_cut


def test_replies_in_time_keep_a_busy_connection(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    outcomes = [Outcome(protocol.execute_command(b"PING"))]
    clock.advance(0.45)
    for _ in range(40):
        outcomes.append(Outcome(protocol.execute_command(b"PING")))
        clock.advance(0.45)
        wire.says(OK)  # each is answered 0.9 s after it was asked
        assert len(outcomes[-2].fired) == 1 and not wire.is_cut


def test_an_overdue_reply_cuts_and_all_waiters_fail(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    first = Outcome(protocol.execute_command(b"PING"))
    clock.advance(0.3)
    second = Outcome(protocol.execute_command(b"PING"))
    clock.pump([0.05] * 12)
    assert not wire.is_cut, "0.9 s after the first"
    clock.pump([0.05] * 4)
    assert wire.is_cut, "1.1 s after the first"
    clock.advance(0)
    for outcome in (first, second):
        assert isinstance(outcome.value, LinkLost)
        assert "no reply within 1 s" in str(outcome.value)
    assert clock.getDelayedCalls() == []


def test_the_deadline_of_the_next_runs_from_its_own_turn(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    Outcome(protocol.execute_command(b"PING"))
    clock.advance(0.5)
    second = Outcome(protocol.execute_command(b"PING"))
    clock.advance(0.4)
    wire.says(OK)
    clock.pump([0.05] * 10)
    assert not wire.is_cut, "0.9 s after the second"
    clock.pump([0.05] * 3)
    assert wire.is_cut and "1 s" in str(second.value)


def test_a_process_that_stood_still_reads_before_it_judges(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    outcome = Outcome(protocol.execute_command(b"PING"))
    clock.advance(0.1)
    # Nothing ran for ten seconds; timers come first, then what the sockets have.
    clock.advance(10.0)
    assert not wire.is_cut
    wire.says(OK)
    clock.advance(0.2)
    assert not wire.is_cut and len(outcome.fired) == 1
    assert clock.getDelayedCalls() == []


def test_after_a_judgement_that_was_not_needed_the_next_waiter_is_watched(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    Outcome(protocol.execute_command(b"PING"))
    clock.advance(0.9)
    second = Outcome(protocol.execute_command(b"PING"))
    wire.says(OK)
    clock.pump([0.1] * 8)
    assert not wire.is_cut
    clock.pump([0.1] * 3)
    assert wire.is_cut and isinstance(second.value, LinkLost)


@pytest.mark.parametrize("make", [command_wire, subscriber_wire])
def test_garbage_from_the_server_cuts(clock: Clock, make: Any) -> None:
    protocol, wire = make(clock)
    outcome = Outcome(protocol.execute_command(b"PING"))
    wire.says(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert wire.is_cut
    clock.advance(0)
    assert "does not speak the Redis protocol" in str(outcome.value)


@pytest.mark.parametrize("make", [command_wire, subscriber_wire])
@pytest.mark.parametrize("data", [OK, answer(3), answer([]), answer([1])])
def test_a_reply_that_nobody_asked_for_cuts(clock: Clock, make: Any, data: bytes) -> None:
    protocol, wire = make(clock)
    reasons: list[str] = []
    protocol.closed = lambda protocol, reason: reasons.append(reason)
    wire.says(data, data)
    assert wire.is_cut
    clock.advance(0)
    assert reasons == ["a reply that nothing asked for"]


def test_a_waiter_may_ask_again_from_its_reply(clock: Clock) -> None:
    protocol, wire = command_wire(clock)
    again: list[Outcome] = []
    first = protocol.execute_command(b"PING")
    first.addCallback(lambda _: again.append(Outcome(protocol.execute_command(b"PING"))))
    wire.commands()
    wire.says(OK)
    assert wire.commands() == [[b"PING"]]
    wire.says(answer(b"PONG"))
    assert again[0].value == b"PONG"


# -- the handshake -------------------------------------------------------------------------------------


def _introduced(clock: Clock, **given: Any) -> tuple[Wire, Outcome]:
    protocol, wire = command_wire(clock, **given)
    return wire, Outcome(Deferred.fromCoroutine(protocol.introduce()))


FULL = {"username": "u", "password": "hunter2", "db": 3, "master_only": True}
STEPS = [
    [b"AUTH", b"u", b"hunter2"],
    [b"SELECT", b"3"],
    [b"PING"],
    [b"ROLE"],
    [b"CLIENT", b"SETNAME", b"spread-aa"],
]


def test_the_order_of_the_handshake(clock: Clock) -> None:
    wire, outcome = _introduced(clock, **FULL)
    for step in STEPS:
        assert outcome.fired == []
        assert wire.command() == step
        wire.says(answer([b"master", 0, []]) if step == [b"ROLE"] else OK)
    assert outcome.value is None


def test_only_what_is_configured_is_said(clock: Clock) -> None:
    wire, outcome = _introduced(clock)
    assert wire.command() == [b"PING"]
    wire.says(OK)
    assert wire.command()[0] == b"CLIENT"
    wire.says(OK)
    assert outcome.value is None
    wire, _ = _introduced(clock, password="")
    assert wire.command() == [b"AUTH", b""]


@pytest.mark.parametrize("refused", [b"AUTH", b"SELECT", b"PING", b"ROLE"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [("WRONGPASS invalid username-password pair", HubRefused), ("LOADING the dataset", HubUnavailable)],
)
def test_each_step_may_be_refused(clock: Clock, refused: bytes, said: str, expected: type) -> None:
    wire, outcome = _introduced(clock, **FULL)
    while (name := wire.command()[0]) != refused:
        wire.says(answer([b"master", 0, []]) if name == b"ROLE" else OK)
    wire.says(answer(said))
    assert type(outcome.value) is expected
    assert said in str(outcome.value) and "there" in str(outcome.value)
    assert "hunter2" not in str(outcome.value) + repr(outcome.value)
    assert wire.commands() == [], "nothing is said after a refusal"


def test_a_replica_is_refused_where_a_master_is_wanted(clock: Clock) -> None:
    wire, outcome = _introduced(clock, master_only=True)
    wire.commands()
    wire.says(OK)
    assert wire.command() == [b"ROLE"]
    wire.says(answer([b"slave", b"10.0.0.1", 6379, b"connected", 1]))
    assert type(outcome.value) is HubUnavailable and "is a slave" in str(outcome.value)


def test_a_name_that_an_acl_forbids_does_not_matter(clock: Clock) -> None:
    wire, outcome = _introduced(clock)
    wire.commands()
    wire.says(OK)
    wire.commands()
    wire.says(answer(noperm("command")))
    assert outcome.value is None


# -- the subscriber ------------------------------------------------------------------------------------


class Heard:
    """Connected to all callbacks of a subscriber; notes them in order."""

    def __init__(self, protocol: SubscriberProtocol) -> None:
        self.events: list[Any] = []
        protocol.message = lambda channel, payload: self.events.append((channel, payload))
        protocol.read_done = lambda: self.events.append("read done")
        protocol.confirmed = lambda kind, channel: self.events.append((kind, channel))
        protocol.refused = lambda error: self.events.append(str(error))


def test_the_handshake_of_a_subscriber_ends_with_its_own_channel(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    outcome = Outcome(Deferred.fromCoroutine(protocol.introduce()))
    for name in (b"PING", b"CLIENT"):
        assert wire.command()[0] == name
        wire.says(OK)
    assert outcome.fired == []
    assert wire.command() == [b"SUBSCRIBE", b"own"]
    wire.says(answer([b"subscribe", b"own", 1]))
    assert outcome.value is None


def test_an_own_channel_that_an_acl_forbids_refuses_the_handshake(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    outcome = Outcome(Deferred.fromCoroutine(protocol.introduce()))
    for _ in range(2):
        wire.commands()
        wire.says(OK)
    wire.commands()
    wire.says(answer(noperm()))
    assert type(outcome.value) is HubRefused
    assert "channel own: NOPERM" in str(outcome.value)


def test_messages_confirmations_and_errors_in_the_order_of_one_read(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    heard = Heard(protocol)
    protocol.change_subscriptions(b"SUBSCRIBE", [b"a", b"b"])
    assert wire.commands() == [[b"SUBSCRIBE", b"a", b"b"]]
    wire.says(
        answer([b"subscribe", b"a", 1]),
        message(b"a", b"1"),
        answer([b"subscribe", b"b", 2]),
        answer([b"unsubscribe", b"a", 1]),
        answer([b"unsubscribe", None, 0]),
        message(b"b", b"\x00\xff"),
        answer(noperm()),
    )
    assert heard.events == [
        (True, b"a"),
        (b"a", b"1"),
        (True, b"b"),
        (False, b"a"),
        (b"b", b"\x00\xff"),
        noperm(),
        "read done",
    ]
    assert not wire.is_cut


def test_half_a_message_waits_for_its_other_half(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    heard = Heard(protocol)
    whole = message(b"a", b"payload")
    wire.says(whole[:20])
    wire.says(whole[20:])
    assert heard.events == ["read done", (b"a", b"payload"), "read done"]


def test_what_it_received_and_when(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    assert (protocol.bytes_received, protocol.heard_at) == (0, 1_000_000.0)
    clock.advance(7.0)
    wire.says(message(b"a", b"x"))
    assert (protocol.bytes_received, protocol.heard_at) == (len(message(b"a", b"x")), 1_000_007.0)


def test_pause_and_resume(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    for _ in range(2):
        protocol.pause()
    assert wire.producerState == "paused" and protocol.is_paused
    for _ in range(2):
        protocol.resume()
    assert wire.producerState == "producing" and not protocol.is_paused
    protocol.cut("enough")
    protocol.pause()
    assert wire.producerState == "producing", "a closed connection is left alone"


def test_after_a_cut_nothing_is_heard(clock: Clock) -> None:
    protocol, wire = subscriber_wire(clock)
    heard = Heard(protocol)
    protocol.cut("enough")
    wire.says(message(b"a", b"late"))
    assert heard.events == []


# -- the link ------------------------------------------------------------------------------------------


class Stage:
    """A link with an endpoint that the test plays, and what it told its owner."""

    def __init__(self, clock: Clock, jitter: float = 0.0, **given: Any) -> None:
        self.clock = clock
        self.endpoint = FakeEndpoint(clock)
        self.told: list[str] = []
        self.failures: list[HubError] = []
        self.link = Link(
            clock,
            self.endpoint,
            name="there",
            build=lambda: CommandProtocol(clock, handshake(**given)),
            up=lambda protocol: self.told.append("up"),
            down=lambda reason: self.told.append(f"down: {reason}"),
            jitter=lambda: jitter,
        )
        self.link.failed = self.failures.append

    def connect(self) -> Wire:
        """A good connection, handshake included."""
        wire = self.endpoint.accept()
        wire.introduces()
        return wire

    @property
    def waits(self) -> list[float]:
        """Seconds between the attempts so far."""
        attempts = self.endpoint.attempts
        return [round(later - sooner, 6) for sooner, later in pairwise(attempts)]

    def next_attempt(self) -> None:
        """Let time pass until it tries again."""
        (timer,) = self.clock.getDelayedCalls()
        self.clock.advance(timer.getTime() - self.clock.seconds())


def test_a_link_is_up_after_its_handshake(clock: Clock) -> None:
    stage = Stage(clock)
    assert stage.link.state is LinkState.IDLE
    stage.link.start()
    assert stage.link.state is LinkState.AWAY
    wire = stage.endpoint.accept()
    assert stage.link.protocol is None and stage.told == []
    wire.introduces()
    assert stage.link.state is LinkState.UP and stage.told == ["up"]
    assert stage.link.protocol is not None
    assert stage.failures == []


def test_a_link_that_is_lost_connects_again(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    stage.connect().lose()
    assert stage.told == ["up", "down: Connection was closed cleanly"]
    assert stage.link.state is LinkState.AWAY and stage.link.protocol is None
    stage.next_attempt()
    stage.connect()
    assert stage.told[2:] == ["up"] and stage.waits == [0.05]


def test_down_comes_after_who_waited_has_failed(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.connect()
    protocol = stage.link.protocol
    assert protocol is not None
    protocol.execute_command(b"GET", b"x").addErrback(lambda failure: stage.told.append("failed"))
    wire.lose()
    assert [word.partition(":")[0] for word in stage.told] == ["up", "failed", "down"]


@pytest.mark.parametrize(("jitter", "factor"), [(0.0, 0.5), (0.999999, 1.0)])
def test_it_never_gives_up_and_waits_from_50_ms_to_2_s(clock: Clock, jitter: float, factor: float) -> None:
    stage = Stage(clock, jitter)
    stage.link.start()
    for _ in range(200):
        stage.endpoint.refuse(ConnectionRefusedError("111: Connection refused"))
        stage.next_attempt()
    waits = stage.waits
    assert len(waits) == 200
    assert [round(wait / factor, 3) for wait in waits[:7]] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert all(0.05 <= wait <= 2.0 for wait in waits) and waits == sorted(waits)
    assert {type(failure) for failure in stage.failures} == {HubUnavailable}
    assert "Connection refused" in str(stage.link.last_error)
    stage.connect()
    assert stage.link.state is LinkState.UP and stage.link.last_error is None


def test_repeated_refusals_of_the_handshake_back_off_too(clock: Clock) -> None:
    stage = Stage(clock, password="hunter2")
    stage.link.start()
    for _ in range(8):
        wire = stage.endpoint.accept()
        wire.commands()
        wire.says(answer("WRONGPASS invalid username-password pair"))
        assert wire.is_cut
        clock.advance(0)
        stage.next_attempt()
    assert stage.waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert [type(failure) for failure in stage.failures] == [HubRefused] * 8
    assert stage.told == [], "it was never up"
    wire = stage.endpoint.accept()
    wire.introduces()
    wire.lose()
    stage.next_attempt()
    assert stage.waits[-1] == 0.05, "a good handshake starts anew"


def test_a_connection_lost_in_its_handshake_is_told_as_a_failure(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    stage.endpoint.accept().lose()
    clock.advance(0)
    assert isinstance(stage.failures[0], LinkLost) and stage.told == []
    stage.next_attempt()
    stage.connect()
    assert stage.told == ["up"]


def test_a_server_that_is_silent_in_the_handshake_is_left(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.endpoint.accept()
    clock.pump([0.1] * 11)
    assert wire.is_lost and "no reply within 1 s" in str(stage.failures[0])
    clock.advance(0.1)
    assert len(stage.endpoint.attempts) == 2


def test_an_error_of_ours_from_the_endpoint_is_kept_as_it_is(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    stage.endpoint.refuse(HubMisconfigured("no such file"))
    stage.next_attempt()
    stage.endpoint.refuse(DNSLookupError("no such host."))
    assert [type(failure) for failure in stage.failures] == [HubMisconfigured, HubUnavailable]
    assert str(stage.failures[1]).endswith("no such host")


def test_a_handshake_that_breaks_on_nonsense_is_a_failure_too(clock: Clock) -> None:
    stage = Stage(clock, master_only=True)
    stage.link.start()
    wire = stage.endpoint.accept()
    wire.commands()
    wire.says(OK)
    wire.commands()
    with captured() as lines:
        wire.says(answer([]))  # a ROLE without a role
    assert wire.is_cut and type(stage.failures[0]) is HubUnavailable
    assert any("handshake with there" in line for line in lines)


def test_an_owner_that_fails_is_logged(clock: Clock) -> None:
    stage = Stage(clock)

    def up(protocol: Any) -> None:
        raise ZeroDivisionError

    stage.link._up = up
    stage.link.start()
    with captured() as lines:
        stage.connect()
    assert any("link to there" in line for line in lines)


# -- stop ----------------------------------------------------------------------------------------------


def _stopped(stage: Stage) -> Outcome:
    outcome = Outcome(stage.link.stop())
    stage.clock.advance(0)
    assert outcome.value is None
    assert stage.link.state is LinkState.STOPPED and stage.link.protocol is None
    assert Outcome(stage.link.stop()).value is None, "idempotent"
    attempts = len(stage.endpoint.attempts)
    stage.clock.advance(10.0)
    assert len(stage.endpoint.attempts) == attempts and stage.clock.getDelayedCalls() == []
    return outcome


def test_stop_when_idle(clock: Clock) -> None:
    stage = Stage(clock)
    _stopped(stage)
    assert stage.endpoint.attempts == [] and stage.told == []


def test_stop_while_connecting(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    _stopped(stage)
    assert stage.endpoint.cancelled == 1 and stage.failures == [] and stage.told == []


def test_stop_in_the_handshake(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.endpoint.accept()
    wire.commands()
    _stopped(stage)
    assert wire.is_lost and stage.failures == [] and stage.told == []


def test_stop_when_up_does_not_wait_for_the_server(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.connect()
    protocol = stage.link.protocol
    assert protocol is not None
    waiting = Outcome(protocol.execute_command(b"GET", b"x"))
    _stopped(stage)
    assert wire.is_lost and isinstance(waiting.value, LinkLost)
    assert stage.told == ["up", "down: stopping"]


def test_stop_while_waiting_for_the_next_attempt(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    stage.endpoint.refuse(ConnectionRefusedError())
    _stopped(stage)
    assert len(stage.failures) == 1


def test_stop_between_a_cut_and_its_loss(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.connect()
    assert stage.link.protocol is not None
    stage.link.protocol.cut("deaf")
    _stopped(stage)
    assert wire.is_lost and stage.told == ["up", "down: deaf"]


def test_late_events_after_a_stop_are_harmless(clock: Clock) -> None:
    stage = Stage(clock)
    stage.link.start()
    wire = stage.endpoint.accept()
    wire.commands()
    protocol = wire.protocol
    outcome = Outcome(stage.link.stop())
    protocol.dataReceived(OK + OK)  # the rest of the handshake
    clock.advance(0)
    protocol.dataReceived(OK)
    assert outcome.value is None and stage.told == [] and stage.failures == []
    assert stage.link.state is LinkState.STOPPED and stage.link.protocol is None


def test_a_connection_that_comes_after_a_stop_is_not_taken(clock: Clock) -> None:
    stage = Stage(clock)
    factories: list[Any] = []
    connect = stage.endpoint.connect

    def noting(factory: Any) -> Deferred[Any]:
        factories.append(factory)
        return connect(factory)

    stage.endpoint.connect = noting  # type: ignore[method-assign]
    stage.link.start()
    outcome = Outcome(stage.link.stop())
    assert factories[0].buildProtocol(None) is None, "so Twisted closes it"
    assert outcome.value is None and stage.told == [] and stage.failures == []
    assert clock.getDelayedCalls() == []
