"""One client in one channel: a member of the channel, and what was agreed when it subscribed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from spread.hub.api import ClientInfo
from spread.node.channel import Channel
from spread.node.codec import Codec
from spread.node.outbox import Outbox

__all__ = ["Owner", "Subscription"]


class Owner(Protocol):
    """The session, as its subscriptions need it."""

    @property
    def number(self) -> int: ...
    @property
    def outbox(self) -> Outbox: ...

    def lost_position(self, subscription: Subscription) -> None:
        """Publications are missing for a subscription that follows positions."""
        ...


class Subscription:
    """See ``member.Member``."""

    __slots__ = (
        "announces",
        "channel",
        "codec",
        "expire_at",
        "hears_joins",
        "info",
        "is_positioned",
        "is_present",
        "is_server_side",
        "owner",
        "view",
    )

    def __init__(
        self,
        owner: Owner,
        channel: Channel,
        codec: Codec,
        info: ClientInfo,
        *,
        is_server_side: bool,
        is_positioned: bool,
        is_present: bool,
        announces: bool,
        hears_joins: bool,
        expire_at: int,
        view: Hashable | None = None,
    ) -> None:
        self.owner = owner
        self.channel = channel
        self.codec = codec
        self.info = info
        """What others see of this client in this channel."""
        self.is_server_side = is_server_side
        self.is_positioned = is_positioned
        """A hole in what it gets is told to it."""
        self.is_present = is_present
        """It is in the presence of the channel."""
        self.announces = announces
        """Its coming and going is told to others."""
        self.hears_joins = hears_joins
        self.expire_at = expire_at
        """Seconds since 1970; 0: never."""
        self.view = view
        """See ``member.Member``."""

    @property
    def client(self) -> str:
        """See ``member.Member``."""
        return self.info.client

    @property
    def number(self) -> int:
        """See ``member.Member``."""
        return self.owner.number

    @property
    def outbox(self) -> Outbox:
        """See ``member.Member``."""
        return self.owner.outbox

    def set_view(self, view: Hashable | None) -> None:
        """See it from here on with that view.

        :raises TypeError: this is no key of a dictionary.
        """
        self.channel.set_view(self, view)

    def broken(self) -> None:
        """See ``member.Member``."""
        if self.is_positioned:
            self.owner.lost_position(self)
