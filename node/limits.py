"""Limits on what clients may do: how many there are, and how often one may speak. No Twisted, no clock."""

from __future__ import annotations

__all__ = ["Admission", "Rate"]


class Admission:
    """Who may connect: ``max_clients`` in all, ``max_per_address`` from one IP address; 0 is no limit."""

    def __init__(self, max_clients: int, max_per_address: int) -> None:
        self.max_clients = max_clients
        self.max_per_address = max_per_address
        self.clients = 0
        self._by_address: dict[str, int] = {}

    def enter(self, address: str) -> str:
        """Count one more client; "" if it may stay, else why not: ``full`` or ``address``."""
        if self.max_clients and self.clients >= self.max_clients:
            return "full"
        if self.max_per_address:
            count = self._by_address.get(address, 0)
            if count >= self.max_per_address:
                return "address"
            self._by_address[address] = count + 1
        self.clients += 1
        return ""

    def leave(self, address: str) -> None:
        """A client that was let in has gone."""
        self.clients -= 1
        if self.max_per_address:
            count = self._by_address[address] - 1
            if count:
                self._by_address[address] = count
            else:
                del self._by_address[address]


class Rate:
    """A token bucket: ``per_second`` on average, and as many at once as one second brings (one at least)."""

    __slots__ = ("_at", "_burst", "_per_second", "_tokens")

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._tokens = self._burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token; ``False`` if there is none."""
        # A clock that is set back must not take tokens away.
        since = max(0.0, now - self._at)
        self._tokens = min(self._burst, self._tokens + since * self._per_second)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
