"""Where channels are that cannot be anywhere: everything fails with ``HubRefused``, at once."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail

from spread.hub.api import (
    PLAIN,
    ClientInfo,
    Format,
    History,
    Joined,
    Left,
    Ownership,
    Position,
    PresenceStats,
    PublishOptions,
    Stream,
)
from spread.hub.errors import HubRefused

__all__ = ["Refusing"]


class Refusing:
    """All of ``api.Channels``.

    :param why: for the errors.
    """

    def __init__(self, hub: str, why: str) -> None:
        self._hub = hub
        self._why = why

    def _refuse(self) -> Deferred[Any]:
        return fail(HubRefused(self._hub, self._why))

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """Refused, here and below."""
        return self._refuse()

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """Refused."""
        return self._refuse()

    def unsubscribe(self, channel: str) -> None:
        """Nothing is heard of it anyway."""

    def press(self, channel: str) -> None:
        """Nobody hears it."""

    def history(
        self,
        channel: str,
        history: History,
        *,
        since: Position | None = None,
        limit: int = 0,
        reverse: bool = False,
    ) -> Deferred[Stream]:
        """Refused."""
        return self._refuse()

    def remove_history(self, channel: str) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """Refused."""
        return self._refuse()

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """Refused."""
        return self._refuse()

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """Refused."""
        return self._refuse()

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """Refused."""
        return self._refuse()

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """Refused."""
        return self._refuse()

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """Refused."""
        return self._refuse()
