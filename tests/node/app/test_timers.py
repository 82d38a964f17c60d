"""The timers of an app, over its updates."""

from __future__ import annotations

import math
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.node.app.app import App
from spread.node.app.marks import every
from tests.node.app.stage import Troupe, log_of

calls: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    calls.clear()


class Clockwork(App):
    def __init__(self) -> None:
        self.every(10.0, self.tock)
        self.later(25.0, self.once)

    @every(1.0)
    def tick(self) -> None:
        calls.append("tick")

    def tock(self) -> None:
        calls.append("tock")

    def once(self, *args: Any) -> None:
        calls.append(("once", *args))


class Wheels(Clockwork):
    """The next version."""


def test_they_call() -> None:
    troupe = Troupe(Clockwork)
    handle = troupe.app.every(0.5, troupe.app.tock)
    troupe.app.later(0.2, troupe.app.once, 1)
    troupe.turn(1.1)
    assert calls == [("once", 1), "tock", "tick", "tock"]
    handle.cancel()
    handle.cancel()
    assert not handle.is_active
    troupe.turn(9.5)
    assert sorted(calls[4:]) == ["tick"] * 9 + ["tock"]


def test_those_of_init_do_not_pile_up_and_keep_their_time() -> None:
    troupe = Troupe(Clockwork)
    for version in [Wheels, Clockwork] * 4:
        troupe.turn(3.0)
        troupe.swap(version)
        assert len(troupe.host.timers.all) == 3, "tick, tock, once"
    troupe.turn(1.5)
    assert troupe.city.clock.seconds() == 25.5
    assert calls.count("tick") == 25 and calls.count("tock") == 2 and calls.count(("once",)) == 1
    assert len(troupe.host.timers.all) == 2


def test_those_that_the_next_version_does_not_make_end() -> None:
    class Still(Clockwork):
        def __init__(self) -> None:
            pass

        tick = None  # type: ignore[assignment]

    troupe = Troupe(Clockwork)
    moving = troupe.app.every(5.0, troupe.app.tock)
    troupe.swap(Still)
    troupe.turn(30.0)
    assert calls == ["tock"] * 6 and moving.is_active


def test_limits() -> None:
    class Many(Clockwork):
        def __init__(self) -> None:
            for _ in range(4):
                self.every(1.0, self.tock)

    troupe = Troupe(Many, app={"max_timers": 5})
    with pytest.raises(RuntimeError, match=r"app\.max_timers"):
        troupe.app.later(1.0, troupe.app.tock)
    troupe.swap(Many)  # in their place
    assert len(troupe.host.timers.all) == 5

    class TooMany(Clockwork):
        def __init__(self) -> None:
            for _ in range(5):
                self.every(1.0, self.tock)

    with pytest.raises(RuntimeError, match="there would be 6 timers"):
        troupe.swap(TooMany)
    assert type(troupe.app) is Many and len(troupe.host.timers.all) == 5
    for seconds in (0.0, -1.0, math.nan, math.inf, 1e10):
        with pytest.raises(ValueError):
            troupe.app.every(seconds, troupe.app.tock)
        with pytest.raises(ValueError):
            every(seconds)
    for seconds in (math.nan, math.inf):
        with pytest.raises(ValueError):
            troupe.app.later(seconds, troupe.app.tock)
    with pytest.raises(TypeError):
        troupe.app.later(1.0, None)


def test_what_a_timer_raises_is_logged_and_it_goes_on() -> None:
    troupe = Troupe(Clockwork)

    def wrong() -> None:
        calls.append("wrong")
        raise SystemExit

    with log_of() as lines:
        troupe.app.every(2.0, wrong)
        troupe.turn(4.0)
    assert calls.count("wrong") == 2 and len(lines) == 2 and "timer wrong" in lines[0]


def test_a_call_that_is_not_done_is_not_called_again() -> None:
    troupe = Troupe(Clockwork)
    waiting: list[Deferred[None]] = []

    def slow() -> Deferred[None]:
        waiting.append(Deferred())
        return waiting[-1]

    troupe.app.every(1.0, slow)
    troupe.turn(3.0)
    assert len(waiting) == 1
    waiting[0].callback(None)
    troupe.turn(1.0)
    assert len(waiting) == 2
