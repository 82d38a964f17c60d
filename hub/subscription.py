"""One channel that this shard hears on one server; what becomes of it is told in ``subscribe``."""

from __future__ import annotations

from enum import Enum

from twisted.internet.defer import Deferred

from spread.hub.api import Position
from spread.hub.repair import Follower

__all__ = ["State", "Subscription"]


class State(Enum):
    """See ``subscribe``."""

    WANTED = "wanted"
    ASKED = "asked"
    LIVE = "live"


class Subscription:
    """Slots only: a shard may hear 100,000 channels."""

    __slots__ = (
        "channel",
        "deaf_since",
        "follower",
        "has_plain",
        "key",
        "linger_until",
        "position_waiters",
        "state",
        "waiters",
    )

    def __init__(self, channel: str, key: bytes) -> None:
        self.channel = channel
        self.key = key
        self.state = State.WANTED
        self.linger_until: float | None = None  # None while it has members
        self.waiters: list[Deferred[Position | None]] = []
        self.follower: Follower | None = None
        self.position_waiters: list[Deferred[Position | None]] = []
        self.has_plain = False  # somebody subscribed without a history
        self.deaf_since: float | None = None  # its slot has moved
