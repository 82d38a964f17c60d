"""All channels of a shard, and their subscriptions at the hub.

A channel exists here while it has members, or someone is about to become one. The hub is asked to hear it
when it comes into being, and told to stop some time after it is empty.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from spread.hub.api import History, Hub, Position
from spread.node.channel import Channel
from spread.node.lens import Lens
from spread.node.member import Member
from spread.node.metrics import ShardCounters
from spread.node.views import Sight

__all__ = ["Channels"]


class Channels:
    """All channels of this shard, and their subscriptions at the hub."""

    def __init__(self, hub: Hub, counters: ShardCounters) -> None:
        self._hub = hub
        self._counters = counters
        self._by_name: dict[str, Channel] = {}
        self._lens: Lens | None = None
        self.handed_over = 0
        """Events that the hub has handed over to this shard; the fan-out counts them."""

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Channel | None:
        """The channel, if it has members here."""
        return self._by_name.get(name)

    @property
    def lens(self) -> Lens | None:
        """What the app makes of publications; to be set again when it would answer ``has_…`` otherwise."""
        return self._lens

    @lens.setter
    def lens(self, lens: Lens | None) -> None:
        self._lens = lens
        for channel in list(self._by_name.values()):
            channel.look(self.sight_of(channel.name))

    def set_view(self, number: int, name: str, view: Hashable | None) -> None:
        """Let the session of this number see a channel with another view; see ``Channel.set_view``. Does
        nothing if it is no member of it.

        :raises TypeError: this is no key of a dictionary.
        """
        channel = self._by_name.get(name)
        member = None if channel is None else channel.members.get(number)
        if channel is not None and member is not None:
            channel.set_view(member, view)

    def sight_of(self, name: str) -> Sight | None:
        """What the app makes of the publications of a channel, whether it has members here or not."""
        if self._lens is None:
            return None
        sight = Sight(self._lens, name, self._counters)
        return sight if sight.has_views or sight.has_latest else None

    def hold(self, name: str, history: History | None = None) -> Deferred[Channel]:
        """Have a channel that is heard; it is kept until ``release``, with members or without.

        Waits without limit while the hub is away: who holds has a deadline, and cancels.

        :param history: what the channel keeps; the same for all who hold it.
        :raises HubRefused: the hub forbids the channel.
        """
        channel = self._by_name.get(name)
        if channel is None:
            channel = Channel(name, history, self._counters, self.sight_of(name))
            self._by_name[name] = channel
        channel.joining += 1
        if channel.is_live:
            return succeed(channel)

        def live(position: Position | None, channel: Channel = channel) -> Channel:
            if not channel.is_live:
                channel.is_live = True
                channel.since = self.handed_over
                channel.position = position
            return channel

        def failed(failure: Failure, channel: Channel = channel) -> Failure:
            self.release(channel)
            return failure

        return self._hub.subscribe(name, history).addCallbacks(live, failed)

    def release(self, channel: Channel) -> None:
        """Hold it no more."""
        channel.joining -= 1
        self._drop_empty(channel)

    def join(self, member: Member, name: str, history: History | None = None) -> Deferred[Channel]:
        """Make a session a member once the channel is heard. Waits like ``hold``.

        :raises HubRefused: the hub forbids the channel.
        :raises Exception: what the app raises when it is asked for the view.
        """

        def held(channel: Channel) -> Channel:
            try:
                member.view = channel.view_of(member.number)
                channel.add(member)
            finally:
                self.release(channel)
            return channel

        return self.hold(name, history).addCallback(held)

    def leave(self, member: Member, channel: Channel) -> None:
        """Take a session out of a channel. Idempotent."""
        if channel.remove(member):
            self._drop_empty(channel)

    def _drop_empty(self, channel: Channel) -> None:
        if not channel.members and not channel.joining and self._by_name.get(channel.name) is channel:
            del self._by_name[channel.name]
            self._hub.unsubscribe(channel.name)
