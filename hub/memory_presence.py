"""Who is present in the channels of an exchange."""

from __future__ import annotations

from spread.hub.api import ClientInfo, PresenceStats
from spread.hub.reactor import Clock

__all__ = ["MemoryPresence"]

SWEEP_SECONDS = 60.0
"""Who has expired in channels that nobody asks for is forgotten at the first addition after so long."""


class MemoryPresence:
    """What the memory hubs of one exchange share of it; times are the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._channels: dict[str, dict[str, tuple[float, ClientInfo]]] = {}
        self._sweep_at = 0.0

    def add(self, channel: str, info: ClientInfo, ttl_seconds: int) -> None:
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
