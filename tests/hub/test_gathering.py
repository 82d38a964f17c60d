"""After an outage, until the other shards hear again."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from spread.hub.gathering import COUNT_SECONDS, LOOK_SECONDS, WAIT_SECONDS, Gathering
from spread.hub.link import CommandProtocol
from tests.hub.scripted import Wire, answer, captured, command_wire, noperm, subscriber_wire

KEY = b"spread:hearing"


class Stage:
    """A gathering with a command connection that the test answers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.gathering = Gathering(self.clock, KEY)
        self.connection: CommandProtocol | None = None
        self.began_at = 0.0
        self.done: list[float] = []
        """How long each wait took that was done."""

    def wait(self) -> Wire:
        """The command link is up on a new connection."""
        self.connection, wire = command_wire(self.clock)
        self.began_at = self.clock.seconds()
        self.gathering.wait(
            self.connection, lambda: self.done.append(round(self.clock.seconds() - self.began_at, 3))
        )
        return wire

    def hears(self) -> Wire:
        """The subscriber hears all of its channels."""
        subscriber, wire = subscriber_wire(self.clock)
        self.gathering.take_part(subscriber)
        return wire

    def tell(self, wire: Wire, count: int) -> None:
        assert wire.command() == [b"PUBSUB", b"NUMSUB", KEY]
        wire.says(answer([KEY, count]))

    def outage(self, wire: Wire) -> None:
        self.gathering.stop()
        self.gathering.hear_no_more()
        wire.lose()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def _knows(stage: Stage, count: int) -> Wire:
    """A shard that hears, as one of ``count``."""
    wire = stage.wait()
    stage.tell(wire, 0)
    stage.hears()
    stage.clock.advance(COUNT_SECONDS)
    stage.tell(wire, count)
    assert stage.done == [0.0]
    stage.done.clear()
    return wire


def test_taking_part_is_a_subscription(stage: Stage) -> None:
    assert stage.hears().command() == [b"SUBSCRIBE", KEY]


def test_at_the_first_start_nobody_is_waited_for(stage: Stage) -> None:
    wire = stage.wait()
    assert stage.done == []
    stage.tell(wire, 0)
    assert stage.done == [0.0]


def test_the_count_is_kept_up_to_date(stage: Stage) -> None:
    wire = stage.wait()
    for count in (0, 1, 5, 2):
        stage.tell(wire, count)
        stage.clock.advance(COUNT_SECONDS - 0.01)
        assert wire.commands() == []
        stage.clock.advance(0.02)
    stage.tell(wire, 2)
    assert stage.done == [0.0] and stage.gathering.known == 2


def test_it_waits_until_as_many_hear_as_before(stage: Stage) -> None:
    stage.outage(_knows(stage, 3))
    wire = stage.wait()
    stage.hears()
    for count in (1, 2, 2):
        stage.tell(wire, count)
        assert stage.done == []
        stage.clock.advance(LOOK_SECONDS)
    stage.tell(wire, 3)
    assert stage.done == [0.15]
    stage.clock.advance(COUNT_SECONDS)
    stage.tell(wire, 2)
    assert stage.done == [0.15], "done once"


def test_it_waits_for_its_own_ears(stage: Stage) -> None:
    stage.outage(_knows(stage, 2))
    wire = stage.wait()
    stage.tell(wire, 2)
    assert stage.done == [], "two others hear, and we do not yet"
    stage.hears()
    stage.clock.advance(LOOK_SECONDS)
    stage.tell(wire, 3)
    assert stage.done == [0.05]


def test_it_waits_for_its_own_ears_when_the_outage_came_before_the_first_count(stage: Stage) -> None:
    wire = stage.wait()
    stage.hears()
    stage.outage(wire)
    wire = stage.wait()
    stage.tell(wire, 0)
    assert stage.done == []
    stage.hears()
    stage.clock.advance(LOOK_SECONDS)
    stage.tell(wire, 1)
    assert stage.done == [0.05]


def test_it_gives_up_when_one_does_not_come_back(stage: Stage) -> None:
    stage.outage(_knows(stage, 3))
    wire = stage.wait()
    stage.hears()
    looks = 0
    while not stage.done:
        stage.tell(wire, 2)
        looks += 1
        stage.clock.advance(LOOK_SECONDS)
    assert WAIT_SECONDS <= stage.done[0] <= WAIT_SECONDS + LOOK_SECONDS
    assert looks <= WAIT_SECONDS / LOOK_SECONDS + 2
    stage.outage(wire)
    stage.done.clear()
    wire = stage.wait()
    stage.hears()
    stage.tell(wire, 2)
    assert stage.done == [0.0], "from now on two are all"


def test_where_an_acl_forbids_asking_nobody_waits_and_nobody_asks_again(stage: Stage) -> None:
    wire = stage.wait()
    wire.command()
    wire.says(answer(noperm("command")))
    assert stage.done == [0.0]
    stage.clock.advance(10.0)
    assert wire.commands() == [] and stage.clock.getDelayedCalls() == []


def test_a_server_that_is_busy_is_asked_again_later(stage: Stage) -> None:
    wire = stage.wait()
    wire.command()
    wire.says(answer("BUSY Redis is busy running a script"))
    assert stage.done == [0.0]
    stage.clock.advance(COUNT_SECONDS)
    stage.tell(wire, 4)
    assert stage.done == [0.0] and stage.gathering.known == 4


def test_stop_asks_no_more_and_does_not_say_done(stage: Stage) -> None:
    stage.outage(_knows(stage, 3))
    wire = stage.wait()
    stage.tell(wire, 1)
    for _ in range(2):
        stage.gathering.stop()
    stage.clock.advance(10.0)
    assert stage.done == [] and wire.commands() == [] and stage.clock.getDelayedCalls() == []


@pytest.mark.parametrize("reply", [answer([KEY, 1]), answer(noperm("command")), answer("BUSY a script")])
def test_late_replies_after_a_stop_are_ignored(stage: Stage, reply: bytes) -> None:
    wire = stage.wait()
    wire.command()
    stage.gathering.stop()
    wire.says(reply)
    stage.clock.advance(10.0)
    assert stage.done == [] and wire.commands() == []


@pytest.mark.parametrize("reply", [answer([KEY, 9]), answer(noperm("command")), answer("BUSY a script")])
def test_late_replies_of_an_old_connection_are_ignored(stage: Stage, reply: bytes) -> None:
    old = _knows(stage, 3)
    stage.clock.advance(COUNT_SECONDS)
    old.command()
    new = stage.wait()
    old.says(reply)
    assert stage.done == [], "the new connection was not asked yet"
    stage.tell(new, 3)
    assert stage.done == [0.0]


def test_a_connection_that_breaks_while_it_is_asked_is_not_done(stage: Stage) -> None:
    wire = stage.wait()
    wire.lose()
    assert stage.done == []


def test_a_waiter_that_fails_is_logged(stage: Stage) -> None:
    connection, wire = command_wire(stage.clock)

    def fails() -> None:
        raise ZeroDivisionError

    stage.gathering.wait(connection, fails)
    with captured() as lines:
        stage.tell(wire, 0)
    assert "counting the shards" in lines[0]
