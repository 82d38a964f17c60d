"""How long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["FullJitter"]


class FullJitter:
    """From a least time up to a bound that doubles with each attempt: any of it, at random.

    Full jitter, because the clients of a server that died must not come back all at once. The least time is
    there because a server that takes connections only to close them must not be asked without end.
    """

    __slots__ = ("_attempts", "_max_seconds", "_min_seconds", "fraction")

    def __init__(self, min_seconds: float, max_seconds: float, fraction: Callable[[], float]) -> None:
        """:param fraction: random numbers from 0 to 1.

        :raises ValueError: unless ``0 <= min_seconds <= max_seconds``.
        """
        if not 0 <= min_seconds <= max_seconds < float("inf"):
            raise ValueError(f"reconnect delays from {min_seconds} to {max_seconds} seconds")
        self._min_seconds = min_seconds
        self._max_seconds = max_seconds
        self.fraction = fraction
        self._attempts = 0

    def next_seconds(self) -> float:
        """The time to wait now; counts the attempt."""
        bound = min(self._max_seconds, self._min_seconds * 2.0 ** min(self._attempts, 31))
        self._attempts += 1
        return min(self._max_seconds, self._min_seconds + self.fraction() * bound)

    def succeeded(self) -> None:
        """Begin anew."""
        self._attempts = 0
