"""The wheel: nothing early, nothing more than a tick late, one timer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from spread.node.wheel import TICK_SECONDS, Wheel


class Note:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at: list[float] = []

    def due(self, now: float) -> None:
        assert now >= self.clock.seconds() - TICK_SECONDS
        self.at.append(self.clock.seconds())


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 1000))
def test_everything_is_due_once_and_on_time(delays: list[float], start: float) -> None:
    clock = Clock()
    clock.advance(start)
    wheel = Wheel(clock)
    notes = []
    for delay in delays:
        note = Note(clock)
        notes.append((clock.seconds() + delay, note))
        wheel.at(clock.seconds() + delay, note)
        assert len(clock.getDelayedCalls()) == 1
    for _ in range(2000):
        clock.advance(0.0625)
    for due, note in notes:
        assert len(note.at) == 1
        assert due - 1e-6 <= note.at[0] <= due + TICK_SECONDS + 0.0626
    assert clock.getDelayedCalls() == []


def test_what_is_due_may_ask_again() -> None:
    clock = Clock()
    wheel = Wheel(clock)

    class Again(Note):
        def due(self, now: float) -> None:
            super().due(now)
            if len(self.at) < 3:
                wheel.at(now + 1, self)

    again = Again(clock)
    wheel.at(1, again)
    for _ in range(20):
        clock.advance(0.25)
    assert again.at == [1, 2, 3]


def test_a_sooner_time_is_not_held_up_by_a_later_one() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    late, soon = Note(clock), Note(clock)
    wheel.at(100, late)
    wheel.at(1, soon)
    clock.advance(1)
    assert (late.at, soon.at) == ([], [1])
    clock.advance(99)
    assert late.at == [100]


def test_one_that_fails_does_not_stop_the_others() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    seen: list[object] = []

    class Broken:
        def due(self, now: float) -> None:
            raise RuntimeError("broken")

    note = Note(clock)
    wheel.at(1, Broken())
    wheel.at(1, note)
    globalLogPublisher.addObserver(seen.append)
    try:
        clock.advance(1)
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert note.at == [1]
    assert len(seen) == 1


def test_a_stopped_wheel_forgets() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    note = Note(clock)
    wheel.at(1, note)
    wheel.stop()
    wheel.stop()
    wheel.at(1, note)
    clock.advance(5)
    assert note.at == []
    assert clock.getDelayedCalls() == []
