"""Channels of this shard: who is in them, and how a publication reaches them.

A channel exists here while it has members, or someone is about to become one. The hub is asked to hear it
when it comes into being, and told to stop some time after it is empty.

A publication is encoded once for each codec that has members, and the same bytes go to all of them. A
large channel is served in pieces, so that the shard can look after others in between; who is a member is
settled when the fan-out of that publication begins, and who leaves meanwhile gets no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from spread.hub.api import Hub, Publication
from spread.node.outbox import Outbox

__all__ = ["Channel", "Channels", "Codec", "Member"]

MEMBERS_PER_STEP = 512
"""Members served between two looks at the clock: 512 appends are 0.05–0.1 ms."""

Codec = Callable[[int, bytes], bytes]
"""Format and data of a publication → the frame that members of this codec get."""


class Member(Protocol):
    """Who is in channels: a session."""

    @property
    def number(self) -> int: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def outbox(self) -> Outbox: ...


class Channel:
    """One channel on this shard."""

    __slots__ = ("_groups", "is_live", "joining", "members", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[int, Member] = {}
        self.joining = 0
        """Sessions that wait for the subscription before they become members."""
        self.is_live = False
        """The hub has confirmed that the channel is heard."""
        # Outboxes by codec, made anew after a change of members.
        self._groups: list[tuple[Codec, tuple[Outbox, ...]]] | None = None

    def add(self, member: Member) -> None:
        """Make a session a member."""
        self.members[member.number] = member
        self._groups = None

    def remove(self, member: Member) -> bool:
        """Take a member out; ``False`` if it was none."""
        self._groups = None
        return self.members.pop(member.number, None) is not None

    def groups(self) -> list[tuple[Codec, tuple[Outbox, ...]]]:
        """The members' outboxes, by codec."""
        if self._groups is None:
            by_codec: dict[Codec, list[Outbox]] = {}
            for member in self.members.values():
                by_codec.setdefault(member.codec, []).append(member.outbox)
            self._groups = [(codec, tuple(outboxes)) for codec, outboxes in by_codec.items()]
        return self._groups

    def fan_out(self, publication: Publication, publisher: int) -> Iterator[None] | None:
        """Write a publication to all members but the publisher.

        :param publisher: number of the publishing session if it is one of this shard, else 0.
        :returns: ``None`` when all is done; else an iterator that does a piece at each step.
        """
        # getattr of a dict beats a scan; most publications come from another shard or a non-member.
        sender = self.members.get(publisher) if publisher else None
        skip = sender.outbox if sender is not None else None
        groups = self.groups()
        if len(self.members) > MEMBERS_PER_STEP:
            return self._in_pieces(publication, groups, skip)
        for codec, outboxes in groups:
            frame = codec(publication.format, publication.data)
            for outbox in outboxes:
                if outbox is not skip:
                    outbox.write(frame)
        return None

    def _in_pieces(
        self, publication: Publication, groups: list[tuple[Codec, tuple[Outbox, ...]]], skip: Outbox | None
    ) -> Iterator[None]:
        for codec, outboxes in groups:
            frame = codec(publication.format, publication.data)
            for start in range(0, len(outboxes), MEMBERS_PER_STEP):
                piece = outboxes[start : start + MEMBERS_PER_STEP]
                if groups is not self._groups:  # members have changed since the first piece
                    present = {id(member.outbox) for member in self.members.values()}
                    piece = tuple(outbox for outbox in piece if id(outbox) in present)
                for outbox in piece:
                    if outbox is not skip:
                        outbox.write(frame)
                yield


class Channels:
    """All channels of this shard, and their subscriptions at the hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._by_name: dict[str, Channel] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Channel | None:
        """The channel, if it has members here."""
        return self._by_name.get(name)

    def join(self, member: Member, name: str) -> Deferred[Channel]:
        """Make a session a member once the channel is heard.

        Waits without limit while the hub is away: who joins has a deadline, and cancels.

        :raises HubRefused: the hub forbids the channel.
        """
        channel = self._by_name.get(name)
        if channel is None:
            channel = self._by_name[name] = Channel(name)
        if channel.is_live:
            channel.add(member)
            return succeed(channel)
        channel.joining += 1
        subscribed = self._hub.subscribe(name)

        def live(_: object, channel: Channel = channel) -> Channel:
            channel.joining -= 1
            channel.is_live = True
            channel.add(member)
            return channel

        def failed(failure: Failure, channel: Channel = channel) -> Failure:
            channel.joining -= 1
            self._release(channel)
            return failure

        return subscribed.addCallbacks(live, failed)

    def leave(self, member: Member, channel: Channel) -> None:
        """Take a session out of a channel. Idempotent."""
        if channel.remove(member):
            self._release(channel)

    def _release(self, channel: Channel) -> None:
        if not channel.members and not channel.joining and self._by_name.get(channel.name) is channel:
            del self._by_name[channel.name]
            self._hub.unsubscribe(channel.name)
