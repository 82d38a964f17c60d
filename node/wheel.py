"""One timer for all sessions of a shard: pings, pongs, expiries.

15,000 clients with a timer each for the next ping, the pong and the expiry would be 45,000 entries in the
reactor's heap, each of 0.5 kB. Here what is due within the same quarter of a second is a list, and the
reactor has one timer, for the next list.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Protocol

from twisted.logger import Logger

from spread.hub.reactor import Clock, Timer

__all__ = ["TICK_SECONDS", "Timed", "Wheel"]

TICK_SECONDS = 0.25
"""How exact the wheel is: nothing is early, and late by this at most."""


class Timed(Protocol):
    """What has something to do at a certain time."""

    def due(self, now: float) -> None:
        """It is time. May come for a time that does not matter any more."""


class Wheel:
    """The wheel of one shard; its time is that of the reactor."""

    log = Logger("spread.node.wheel")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ticks: dict[int, list[Timed]] = {}
        self._order: list[int] = []  # a heap of the keys
        self._timer: Timer | None = None
        self._timer_tick = 0
        self._is_stopped = False

    def at(self, seconds: float, timed: Timed) -> None:
        """Call ``timed.due`` at this time of the reactor, or within a tick after it."""
        if self._is_stopped:
            return
        tick = math.ceil(seconds / TICK_SECONDS)
        entries = self._ticks.get(tick)
        if entries is not None:
            entries.append(timed)
            return
        self._ticks[tick] = [timed]
        heappush(self._order, tick)
        if self._timer is None or tick < self._timer_tick:
            self._wind(tick)

    def stop(self) -> None:
        """Forget everything. Idempotent."""
        self._is_stopped = True
        self._ticks.clear()
        self._order.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wind(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_tick = tick
        wait = tick * TICK_SECONDS - self._clock.seconds()
        self._timer = self._clock.callLater(max(0.0, wait), self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        # The clock of the reactor may be a hair behind the time that its timer was set for.
        now = max(now, self._timer_tick * TICK_SECONDS)
        while self._order and self._order[0] * TICK_SECONDS <= now:
            for timed in self._ticks.pop(heappop(self._order)):
                try:
                    timed.due(now)
                except Exception:
                    # One session must not stop the time of all others.
                    self.log.failure("a timer of {timed}", timed=type(timed).__name__)
        if self._order:
            self._wind(self._order[0])
