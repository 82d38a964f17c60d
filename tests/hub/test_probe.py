"""The probe: a subscriber that delivers nothing is cut, and only that one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from spread.hub.api import HubCounters
from spread.hub.errors import LinkLost, ReplyError
from spread.hub.link import SubscriberProtocol
from spread.hub.probe import Probe, probe_sender
from tests.hub.scripted import Wire, command_wire, message, subscriber_wire


class Stage:
    """A probe of 3 s that watches a subscriber; ``sent`` has the times of the probes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.counters = HubCounters()
        self.sent: list[float] = []
        self.result: Any = None
        """What sending a probe gives; ``None`` for a command link that is down."""
        self.is_up = True
        self.probe = Probe(self.clock, 3.0, self._send, self.counters)
        self.reasons: list[str] = []
        self.connection, self.wire = self.watch()

    def watch(self) -> tuple[SubscriberProtocol, Wire]:
        connection, wire = subscriber_wire(self.clock)
        connection.closed = lambda protocol, reason: self.reasons.append(reason)
        self.probe.watch(connection)
        return connection, wire

    def _send(self) -> Any:
        if not self.is_up:
            return None
        self.sent.append(self.clock.seconds() - 1_000_000.0)
        return self.result if self.result is not None else Deferred()

    def hears(self) -> None:
        self.wire.says(message(b"own", b"echo"))

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_one_that_is_busy_is_not_probed(stage: Stage) -> None:
    for _ in range(10):
        stage.passes(2.0)
        stage.hears()
    assert stage.sent == []


def test_one_that_is_silent_is_probed_and_kept_when_the_probe_arrives(stage: Stage) -> None:
    for number in range(5):
        while len(stage.sent) == number:
            stage.passes(0.05)
        stage.passes(0.5)
        stage.hears()
    stage.passes(2.0)
    assert not stage.wire.is_cut and stage.counters.deaf_links == 0
    assert 3.0 <= stage.sent[0] < 3.2


def test_a_deaf_one_is_cut(stage: Stage) -> None:
    stage.passes(6.1)
    assert len(stage.sent) == 1 and not stage.wire.is_cut
    stage.passes(0.4)
    assert stage.wire.is_cut and stage.counters.deaf_links == 1
    stage.clock.advance(0)
    assert stage.reasons == ["deaf: a probe did not arrive within 3 s"]
    assert stage.clock.getDelayedCalls() == []


def test_a_deaf_one_is_cut_in_time_whenever_it_went_deaf(stage: Stage) -> None:
    """Its last words may come right after it was looked whether there are any."""
    for seconds in (0.1, 0.7, 0.8, 1.6, 2.9, 3.1):
        stage.connection, stage.wire = stage.watch()
        stage.passes(seconds)
        stage.hears()
        stage.passes(6.0)
        assert not stage.wire.is_cut, "it had its time to answer"
        stage.passes(1.4)
        assert stage.wire.is_cut, seconds


def test_anything_that_arrives_shows_that_it_is_not_deaf(stage: Stage) -> None:
    stage.passes(3.2)
    stage.wire.says(b"*3\r\n$7\r\nmess")  # the beginning of something large
    stage.passes(3.0)
    assert not stage.wire.is_cut and len(stage.sent) == 1


def test_a_process_that_stood_still_reads_before_it_judges(stage: Stage) -> None:
    stage.passes(3.2)
    stage.clock.advance(60.0)
    assert not stage.wire.is_cut
    stage.hears()
    stage.passes(0.5)
    assert not stage.wire.is_cut and stage.counters.deaf_links == 0
    stage.passes(6.0)
    assert len(stage.sent) == 2, "it goes on watching"


def test_while_the_command_link_is_down_silence_says_nothing(stage: Stage) -> None:
    stage.is_up = False
    stage.passes(30.0)
    assert not stage.wire.is_cut
    stage.is_up = True
    stage.passes(3.1)
    assert len(stage.sent) == 1


@pytest.mark.parametrize("error", [LinkLost("there", "broke"), ReplyError("LOADING")])
def test_a_probe_that_was_not_taken_says_nothing(stage: Stage, error: Exception) -> None:
    stage.result = fail(error)
    stage.passes(3.1)
    stage.result = None
    stage.passes(3.1)
    assert len(stage.sent) == 2 and not stage.wire.is_cut
    stage.passes(3.5)
    assert stage.wire.is_cut


def test_a_probe_that_fails_in_the_last_moment_says_nothing(stage: Stage) -> None:
    stage.result = Deferred()
    stage.passes(6.1)
    stage.result.errback(LinkLost("there", "broke"))
    stage.passes(0.5)
    assert not stage.wire.is_cut


def test_one_that_is_paused_is_left_alone(stage: Stage) -> None:
    stage.connection.pause()
    stage.passes(30.0)
    assert stage.sent == []
    stage.connection.resume()
    stage.passes(3.2)
    assert len(stage.sent) == 1
    stage.passes(2.9)
    stage.connection.pause()
    stage.passes(5.0)
    assert not stage.wire.is_cut and len(stage.sent) == 1


def test_one_that_is_paused_while_it_is_judged(stage: Stage) -> None:
    stage.clock.advance(3.0)
    stage.clock.advance(3.0)  # now it reads for a moment
    stage.connection.pause()
    stage.passes(1.0)
    assert not stage.wire.is_cut and stage.counters.deaf_links == 0


def test_a_new_connection_is_watched_from_its_own_beginning(stage: Stage) -> None:
    stage.passes(5.9)
    _, wire = stage.watch()
    stage.passes(3.0)
    assert not stage.wire.is_cut and not wire.is_cut
    stage.passes(3.5)
    assert wire.is_cut and not stage.wire.is_cut, "the old one is its link's affair"
    assert len(stage.sent) == 2


def test_stop_in_each_phase(stage: Stage) -> None:
    for seconds in (1.0, 3.1, 6.1):
        stage.watch()
        stage.passes(seconds)
        for _ in range(2):
            stage.probe.stop()
        assert stage.clock.getDelayedCalls() == []
    stage.passes(30.0)
    assert not stage.wire.is_cut


def test_the_usual_probe_is_a_publication_on_the_command_link() -> None:
    connection, wire = command_wire(Clock())
    assert probe_sender(lambda: None, lambda: b"own", b"probe")() is None
    assert probe_sender(lambda: connection, lambda: b"own", b"probe")() is not None
    assert wire.command() == [b"PUBLISH", b"own", b"probe"]
