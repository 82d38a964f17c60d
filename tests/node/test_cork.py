"""The cork: everything marked is flushed once, in order, and no turn takes longer than it may."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock

from spread.node.cork import FLUSHES_PER_LOOK, Cork
from tests.fakes import TurnClock


class Marked:
    """An outbox that notes when it is flushed, and may do something then."""

    def __init__(self, name: int, flushed: list[int], then: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self._flushed = flushed
        self._then = then

    def flush(self) -> None:
        self._flushed.append(self.name)
        self._then()


class Watch:
    """A clock for ``now``: each look takes a second."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return float(self.looks)


def test_what_is_marked_leaves_in_the_next_turn() -> None:
    clock, flushed = Clock(), []
    cork = Cork(clock, clock.seconds, 1.0)
    for name in range(3):
        cork.mark(Marked(name, flushed))
    assert flushed == []
    clock.advance(0)
    assert flushed == [0, 1, 2]
    assert clock.getDelayedCalls() == []


def test_it_leaves_sooner_when_asked_and_not_twice() -> None:
    clock, flushed = Clock(), []
    cork = Cork(clock, clock.seconds, 1.0)
    cork.mark(Marked(0, flushed))
    assert cork.flush(1.0)
    assert flushed == [0]
    assert cork.flush(1.0)
    clock.advance(0)
    assert flushed == [0]


def test_a_mark_made_by_a_flush_leaves_in_the_turn_after() -> None:
    clock, flushed = Clock(), []
    cork = Cork(clock, clock.seconds, 1.0)
    cork.mark(Marked(0, flushed, lambda: cork.mark(Marked(1, flushed))))
    assert not cork.flush(1.0)
    assert flushed == [0]
    clock.advance(0)
    assert flushed == [0, 1]


def test_many_are_flushed_in_as_many_turns_as_it_takes() -> None:
    clock, flushed = TurnClock(), []
    cork = Cork(clock, Watch(), 0.5)  # each look finds the time over
    count = FLUSHES_PER_LOOK * 3 + 1
    cork.mark(Marked(0, flushed, lambda: cork.mark(Marked(-1, flushed))))
    for name in range(1, count):
        cork.mark(Marked(name, flushed))
    turns: list[int] = []
    while clock.getDelayedCalls():
        clock.turn()
        turns.append(len(flushed))
    assert turns == [64, 128, 192, 194]
    assert flushed == [*range(count), -1], "what is marked meanwhile goes behind what waits"


def test_it_looks_at_the_clock_now_and_then_only() -> None:
    clock, flushed, watch = Clock(), [], Watch()
    cork = Cork(clock, watch, 1.0)
    for name in range(FLUSHES_PER_LOOK * 2):
        cork.mark(Marked(name, flushed))
    assert cork.flush(10.0)
    assert watch.looks == 2
    assert len(flushed) == FLUSHES_PER_LOOK * 2


def test_a_deadline_that_comes_with_the_last_one_is_no_delay() -> None:
    clock, flushed = Clock(), []
    cork = Cork(clock, lambda: 2.0, 1.0)
    for name in range(FLUSHES_PER_LOOK):
        cork.mark(Marked(name, flushed))
    assert cork.flush(1.0)
    assert len(flushed) == FLUSHES_PER_LOOK
