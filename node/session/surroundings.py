"""What sessions of the text protocol ask of their connection, and what all of them on a shard share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from spread.hub.api import PLAIN, History, Hub, PublishOptions
from spread.hub.reactor import Clock
from spread.node.auth.permissions import may_use_text
from spread.node.channels import Channels
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.pressure import Pressure
from spread.node.session.logic import Logic
from spread.node.settings import HubSettings, TextSettings
from spread.node.tables import TABLES_CHANNEL

__all__ = ["Edge", "Surroundings"]


class Edge(Protocol):
    """What a session asks of its connection."""

    @property
    def address(self) -> str:
        """The peer's IP address."""
        ...

    def pause_reading(self) -> None:
        """Hand over no more for now."""

    def resume_reading(self) -> None:
        """Go on."""

    def flush(self) -> None:
        """Hand over what has arrived without a line ending: no more will be read."""

    def cut(self) -> None:
        """Drop the connection now."""

    def finish(self, linger: bool) -> None:
        """End the connection once what waits has been sent.

        :param linger: the peer may be in the middle of sending: let it see our last words before it sees the
            end, by taking in what it still sends for a moment.
        """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all sessions of a shard share."""

    clock: Clock
    hub: Hub
    channels: Channels
    pressure: Pressure
    counters: ShardCounters
    text: TextSettings
    hub_settings: HubSettings
    namespaces: Namespaces
    logic: Logic | None = None
    """The team's code, if there is any."""

    def is_open(self, channel: str) -> bool:
        """Text clients may join this channel, and talk in it."""
        options = self.namespaces.options(channel)
        return (
            options is not None
            and not self.namespaces.is_private(channel)
            and channel != TABLES_CHANNEL  # also where another prefix than $ makes a channel private
            and self.namespaces.users_of(channel) is None
            and may_use_text(options)
        )

    def history_of(self, channel: str) -> History | None:
        """What a channel keeps."""
        options = self.namespaces.options(channel)
        return None if options is None else options.history

    def publishing_in(self, channel: str) -> PublishOptions:
        """How what is said in a channel is published."""
        history = self.history_of(channel)
        return PLAIN if history is None else PublishOptions(history=history)
