"""Who is present in the channels of an exchange."""

from __future__ import annotations

from spread.hub.api import ClientInfo, HubCounters, Joined, Left, PresenceStats
from spread.hub.reactor import Clock

__all__ = ["MAX_UNTOLD", "MemoryPresence", "Untold"]

SWEEP_SECONDS = 60.0
"""Who has expired in channels that nobody asks for is forgotten at the first addition after so long."""

MAX_UNTOLD = 100_000
"""Clients in channels of whom one hub remembers what it could not tell; more is counted and dropped."""


class MemoryPresence:
    """What the memory hubs of one exchange share of it; times are the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._channels: dict[str, dict[str, tuple[float, ClientInfo]]] = {}
        self._sweep_at = 0.0

    def add(self, channel: str, info: ClientInfo, ttl_seconds: float) -> None:
        """See ``api.Hub.add_presence``."""
        now = self._clock.seconds()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            for name in list(self._channels):
                self._expire(name)
        self._channels.setdefault(channel, {})[info.client] = (now + ttl_seconds, info)

    def remove(self, channel: str, client: str) -> None:
        """See ``api.Hub.remove_presence``."""
        present = self._channels.get(channel, {})
        present.pop(client, None)
        if not present:
            self._channels.pop(channel, None)

    def read(self, channel: str) -> dict[str, ClientInfo]:
        """See ``api.Hub.presence``."""
        self._expire(channel)
        return {client: info for client, (_, info) in self._channels.get(channel, {}).items()}

    def stats(self, channel: str) -> PresenceStats:
        """See ``api.Hub.presence_stats``."""
        present = self.read(channel)
        return PresenceStats(len(present), len({info.user for info in present.values()}))

    def __len__(self) -> int:
        """How many channels are remembered."""
        return len(self._channels)

    def _expire(self, channel: str) -> None:
        now = self._clock.seconds()
        present = self._channels.get(channel, {})
        for client in [client for client, (until, _) in present.items() if until <= now]:
            self.remove(channel, client)


class Untold:
    """What one hub could not tell of its clients while the exchange was cut."""

    def __init__(self, counters: HubCounters) -> None:
        self._counters = counters
        self._joined: set[tuple[str, str]] = set()
        self._absent: set[tuple[str, str]] = set()
        self._events: dict[tuple[str, str], Joined | Left] = {}

    def added(self, channel: str, client: str) -> None:
        """It is present, whether or not that could be told."""
        self._absent.discard((channel, client))

    def removed(self, channel: str, client: str) -> None:
        """It is not any more, which could not be told."""
        if self._has_room():
            self._absent.add((channel, client))

    def announced(self, channel: str, event: Joined | Left, is_told: bool) -> None:
        """Someone came or left; a leave of whom nobody knows is none."""
        key = (channel, event.info.client)
        before = self._events.pop(key, None)
        if isinstance(event, Joined):
            self._joined.add(key)
        else:
            was_joined = key in self._joined
            self._joined.discard(key)
            if not was_joined or isinstance(before, Joined):
                return
        if not is_told and self._has_room():
            self._events[key] = event

    def tell(self, presence: MemoryPresence) -> list[tuple[str, Joined | Left]]:
        """The exchange is back: remove who is to be removed; gives what is to be announced."""
        absent, self._absent = self._absent, set()
        for channel, client in absent:
            presence.remove(channel, client)
        events, self._events = self._events, {}
        return [(channel, event) for (channel, _), event in events.items()]

    def _has_room(self) -> bool:
        has_room = len(self._absent) + len(self._events) < MAX_UNTOLD
        self._counters.removals_dropped += not has_room
        return has_room
