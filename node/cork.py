"""What is written during one reactor turn leaves at its end, in one ``send`` for each socket.

An outbox marks itself when it has something to send. The cork flushes all marked ones in the next turn,
or sooner when asked: the fan-out asks after each slice. Flushing many sockets takes time too (1.4–4 µs
each is the kernel's own price), so it stops at a deadline and goes on in the next turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from spread.hub.reactor import Clock, Timer

__all__ = ["Cork", "Flushable", "Patient"]

FLUSHES_PER_LOOK = 64
"""Sockets flushed between two looks at the clock: 64 sends are 0.1–0.3 ms."""


class Flushable(Protocol):
    """An outbox, as the cork sees it."""

    def flush(self) -> None:
        """Send what is waiting."""


class Patient(Protocol):
    """An outbox that is behind, as the fan-out sees it."""

    def waited_for(self) -> None:
        """The fan-out rests once for its sake."""


class Cork:
    """The marked outboxes of one shard.

    :param now: gives seconds with a resolution well below a millisecond.
    :param turn_seconds: longest time a flush may take in one turn.
    """

    def __init__(self, clock: Clock, now: Callable[[], float], turn_seconds: float) -> None:
        self._clock = clock
        self._now = now
        self._turn_seconds = turn_seconds
        self._marked: list[Flushable] = []
        self._turn: Timer | None = None
        self.is_late = False
        """The last flush did not get to all of them; they come before anything new."""
        self.is_pressed = False
        """Set by an outbox that is over half of its limit; taken back by who reads it."""
        self.behind: list[Patient] = []
        """Of these outboxes, the ones worth waiting for a moment; emptied by who reads it."""

    def mark(self, outbox: Flushable) -> None:
        """Flush this outbox soon. The outbox sees to it that it is marked once."""
        self._marked.append(outbox)
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._take_turn)

    def flush(self, deadline: float) -> bool:
        """Flush the marked outboxes; ``True`` if that was all, ``False`` if the deadline came first."""
        marked, self._marked = self._marked, []
        self.is_late = False
        for index, outbox in enumerate(marked):
            outbox.flush()
            if index % FLUSHES_PER_LOOK == FLUSHES_PER_LOOK - 1 and self._now() > deadline:
                # What was marked meanwhile goes behind what waits.
                self._marked[:0] = marked[index + 1 :]
                self.is_late = len(marked) > index + 1
                break
        if not self._marked:
            return True
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._take_turn)
        return False

    def _take_turn(self) -> None:
        self._turn = None
        self.flush(self._now() + self._turn_seconds)
