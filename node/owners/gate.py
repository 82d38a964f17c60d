"""So many at a time: what would be asked all at once is asked in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

__all__ = ["Gate"]


class Gate:
    """Lets questions through, in their order.

    Twisted's ``DeferredSemaphore`` lets the next one through from within the one before: when the hub goes
    away, and hundreds fail at once, that is deeper than the stack.

    :param most: at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._asking = 0
        self._queue: deque[tuple[Callable[[], Deferred[Any]], Deferred[Any]]] = deque()
        self._is_passing = False

    def run(self, ask: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Ask as soon as it may be; gives the answer, or the failure."""
        result: Deferred[Any] = Deferred()
        self._queue.append((ask, result))
        self._pass()
        return result

    def _pass(self) -> None:
        if self._is_passing:  # whoever does goes on
            return
        self._is_passing = True
        try:
            while self._queue and self._asking < self._most:
                ask, result = self._queue.popleft()
                self._asking += 1
                maybeDeferred(ask).addBoth(self._answered).chainDeferred(result)
        finally:
            self._is_passing = False

    def _answered(self, outcome: Any) -> Any:
        self._asking -= 1
        self._pass()
        return outcome
