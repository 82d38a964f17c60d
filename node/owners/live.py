"""Which shards live, by their pulses in the hub, and whether this one may be sure of its own life.

A shard renews its pulse every ``PULSE_SECONDS``, for ``LIFE_SECONDS`` by the hub's clock, and is told whose
pulses have not run out. It counts the same time by its own clock, from the moment in which it asked: that
begins earlier, so when it ends, others cannot have seen the pulse run out yet. From then on it is not sure,
and does nothing that only the owner of a channel may do.

After such a gap the shard may have been taken for dead; ``gaps`` counts them. And it knows little of the
others: when the hub was away, all pulses have run out, and the shard that renews first would be alone. So for
``LIFE_SECONDS`` more it holds those for alive that it knew before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.errors import HubError
from spread.hub.reactor import Clock, Timer

__all__ = ["LIFE_SECONDS", "PULSE_SECONDS", "Live", "Pulses"]

PULSE_SECONDS = 0.5
LIFE_SECONDS = 1.5

MARGIN_SECONDS = 0.1
"""By which a shard stops being sure early: clocks of two machines run differently, and a step takes time."""

log = Logger("spread.node.owners.live")


class Pulses(Protocol):
    """The part of a hub that is needed here."""

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]: ...
    def end_pulse(self) -> Deferred[None]: ...


class Live:
    """See the line at the top.

    :param steady: seconds by a clock that is never set, and goes on while the process is stopped.
    :param changed: called when other shards live than before, or after a gap.
    """

    def __init__(
        self,
        clock: Clock,
        steady: Callable[[], float],
        hub: Pulses,
        shard: str,
        changed: Callable[[], None],
    ) -> None:
        self.shard = shard
        self.shards: frozenset[str] = frozenset()
        """Incarnations of those that live, this one included."""
        self.gaps = 0
        """Times this shard was not sure, and is again."""
        self._clock = clock
        self._steady = steady
        self._hub = hub
        self._changed = changed
        self._sure_until = float("-inf")
        self._kept: frozenset[str] = frozenset()
        self._kept_until = float("-inf")
        self._timer: Timer | None = None
        self._asking: Deferred[Any] | None = None
        self._has_begun = False
        self._is_stopped = False

    @property
    def is_sure(self) -> bool:
        """Nobody can have taken this shard for dead."""
        return self._steady() < self._sure_until

    def start(self) -> None:
        """Live."""
        self._pulse()

    def refresh(self) -> None:
        """Ask now: what another shard says does not fit to what is known here."""
        if self._asking is None and not self._is_stopped:
            if self._timer is not None:
                self._timer.cancel()
            self._pulse()

    def forget(self, shard: str) -> None:
        """It has said that it stops."""
        self._kept -= {shard}
        if shard in self.shards and shard != self.shard:
            self.shards -= {shard}
            self._changed()

    def stop(self) -> Deferred[None]:
        """Live no more, and let the others know. Never fails. Idempotent."""
        self._is_stopped = True
        self._sure_until = float("-inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._asking is not None:
            self._asking.cancel()
        ended = self._hub.end_pulse().addTimeout(LIFE_SECONDS, cast(Any, self._clock))
        return ended.addErrback(self._not_told)

    def _not_told(self, failure: Failure) -> None:
        failure.trap(HubError, TimeoutError, CancelledError)

    def _pulse(self) -> None:
        asked_at = self._steady()
        self._timer = self._clock.callLater(PULSE_SECONDS, self._again)
        asking = self._asking = self._hub.pulse(LIFE_SECONDS)
        asking.addTimeout(LIFE_SECONDS, cast(Any, self._clock))

        def over(outcome: Any) -> Any:
            self._asking = None
            return outcome

        asking.addBoth(over).addCallback(self._lives, asked_at).addErrback(self._away)

    def _again(self) -> None:
        self._timer = None
        if self._asking is None:
            self._pulse()
        else:  # the hub is slow: once more when it has answered, or has not in time
            self._timer = self._clock.callLater(PULSE_SECONDS / 5, self._again)

    def _lives(self, shards: frozenset[str], asked_at: float) -> None:
        if self._is_stopped:
            return
        now = self._steady()
        is_gap = self._has_begun and now >= self._sure_until
        self._has_begun = True
        if is_gap:
            self.gaps += 1
            self._kept, self._kept_until = self.shards | self._kept, now + LIFE_SECONDS
        self._sure_until = asked_at + LIFE_SECONDS - MARGIN_SECONDS
        if now >= self._kept_until:
            self._kept = frozenset()
        shards = shards | self._kept | {self.shard}
        if shards != self.shards or is_gap:
            self.shards = shards
            self._changed()

    def _away(self, failure: Failure) -> None:
        if failure.check(HubError, TimeoutError, CancelledError) is None:
            log.failure("a pulse", failure)
