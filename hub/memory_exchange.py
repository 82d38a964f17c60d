"""What the memory hubs of one cluster share, in place of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spread.hub.api import PLAIN, Event, Position, Publication, PublishOptions, ShardIdentity
from spread.hub.memory_owners import MemoryOwners
from spread.hub.memory_presence import MemoryPresence
from spread.hub.memory_questions import Switchboard
from spread.hub.memory_streams import Streams
from spread.hub.reactor import Clock

if TYPE_CHECKING:
    from spread.hub.memory import MemoryHub

__all__ = ["Exchange"]


class Exchange:
    """What the memory hubs of one cluster share: channels, what they keep, leases, the client counter.

    :param max_waiting: publications of each hub that may wait while the exchange is cut.
    :param publish_seconds: how long they may wait.
    """

    def __init__(self, clock: Clock, *, max_waiting: int = 100_000, publish_seconds: float = 5.0) -> None:
        self.clock = clock
        self.max_waiting = max_waiting
        self.publish_seconds = publish_seconds
        self.clients = 0
        self.is_cut = False
        self.subscribers: dict[str, dict[MemoryHub, None]] = {}
        self.leases: dict[int, tuple[MemoryHub, ShardIdentity]] = {}
        self.hubs: list[MemoryHub] = []
        self.streams = Streams(clock)
        self.presence = MemoryPresence(clock)
        self.owners = MemoryOwners(clock)
        self.switchboard = Switchboard(clock)

    def cut(self) -> None:
        """Take the hub away from all shards, and what is on its way to them."""
        self.is_cut = True
        self._heard_until = {hub: hub.inbox.lose() for hub in self.hubs}
        self.switchboard.cut()

    def restore(self) -> None:
        """Give it back: what waited is taken, in the order it was published by each shard."""
        self.is_cut = False
        self.switchboard.restore()
        now = self.clock.seconds()
        for hub in list(self.hubs):
            hub.hears_again(now - self._heard_until[hub])
        for hub in list(self.hubs):
            hub.speaks_again()

    def take(
        self, channel: str, publication: Publication, options: PublishOptions = PLAIN
    ) -> Position | None:
        """Take a publication, keep it if it is to be kept, and bring it to every subscribed hub.

        While the exchange is cut it reaches nobody, as one that a shard publishes which still has its hub.

        :raises Fenced: it has a fence, and that does not own the channel.
        """
        if options.fence is not None and not self.streams.has_result(channel, options.idempotency_key):
            self.owners.use(channel, options.fence)
        made, position = self.streams.publish(channel, publication, options)
        if made is not None:
            self.spread(channel, made)
        return position

    def spread(self, channel: str, event: Event) -> None:
        """Bring an event to every subscribed hub."""
        if not self.is_cut:
            for hub in list(self.subscribers.get(channel, ())):
                hub.inbox.arrive(channel, event)
