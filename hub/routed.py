"""A hub of several places: what is asked of a channel is asked where the channel is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from twisted.internet.defer import Deferred

from spread.hub.api import (
    PLAIN,
    Channels,
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
from spread.hub.lives import Lives

__all__ = ["Registered", "Routed"]


class Routed(ABC):
    """All of ``api.Channels``, passed on; 0.1 µs a call."""

    @abstractmethod
    def at(self, channel: str) -> Channels:
        """Where a channel is."""

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """See ``api.Channels``, here and below."""
        return self.at(channel).publish(channel, data, format, session, options)

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """See ``api.Channels``."""
        return self.at(channel).subscribe(channel, history)

    def unsubscribe(self, channel: str) -> None:
        """See ``api.Channels``."""
        self.at(channel).unsubscribe(channel)

    def press(self, channel: str) -> None:
        """See ``api.Channels``."""
        self.at(channel).press(channel)

    def history(
        self,
        channel: str,
        history: History,
        *,
        since: Position | None = None,
        limit: int = 0,
        reverse: bool = False,
    ) -> Deferred[Stream]:
        """See ``api.Channels``."""
        return self.at(channel).history(channel, history, since=since, limit=limit, reverse=reverse)

    def remove_history(self, channel: str) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).remove_history(channel)

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).add_presence(channel, info, ttl_seconds)

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).remove_presence(channel, client)

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """See ``api.Channels``."""
        return self.at(channel).presence(channel)

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """See ``api.Channels``."""
        return self.at(channel).presence_stats(channel)

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).announce(channel, event)

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """See ``api.Channels``."""
        return self.at(channel).owner_of(channel)

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """See ``api.Channels``."""
        return self.at(channel).take(channel, over)

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).give_up(channel, ownership)

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.at(channel).save_state(channel, ownership, state, ttl_seconds)

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """See ``api.Channels``."""
        return self.at(channel).load_state(channel)


class Registered(Routed):
    """The same, but what is told of clients goes through the register of this shard on its way."""

    lives: Lives
    """Made with ``Routed``'s three methods, or what they come to, as its ``channels``."""

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.lives.register.add_presence(channel, info, ttl_seconds)

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.lives.register.remove_presence(channel, client)

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """See ``api.Channels``."""
        return self.lives.register.announce(channel, event)
