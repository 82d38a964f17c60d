"""The words in which shards and Redis speak of pub/sub: those of one server, or of a cluster.

In a cluster a channel lives where the keys of its slot live (sharded pub/sub): a command then names channels
of one slot only, so there is one command for each channel; and the server takes a channel away, with a
confirmation nobody asked for, when its slot moves.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLASSIC", "SHARDED", "Dialect"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Commands, and the first words of what comes back."""

    publish: bytes
    subscribe: bytes
    unsubscribe: bytes
    count: bytes
    """The word after PUBSUB that counts subscribers."""
    message: bytes
    subscribed: bytes
    unsubscribed: bytes
    is_sharded: bool
    """One channel in each command."""


CLASSIC = Dialect(
    publish=b"PUBLISH",
    subscribe=b"SUBSCRIBE",
    unsubscribe=b"UNSUBSCRIBE",
    count=b"NUMSUB",
    message=b"message",
    subscribed=b"subscribe",
    unsubscribed=b"unsubscribe",
    is_sharded=False,
)

SHARDED = Dialect(
    publish=b"SPUBLISH",
    subscribe=b"SSUBSCRIBE",
    unsubscribe=b"SUNSUBSCRIBE",
    count=b"SHARDNUMSUB",
    message=b"smessage",
    subscribed=b"ssubscribe",
    unsubscribed=b"sunsubscribe",
    is_sharded=True,
)
