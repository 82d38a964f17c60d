"""The names that belong to a channel in Redis.

    PREFIX:ch:{CHANNEL}          pub/sub channel
    PREFIX:stream:{CHANNEL}      stream: entry OFFSET-0, field ``d``: a message as subscribers get it
    PREFIX:meta:{CHANNEL}        hash: ``e`` epoch, ``s`` top offset, ``v`` and ``w`` version and its epoch,
                                 ``i`` + incarnation: last sequence taken of that shard, and its offset
    PREFIX:result:{CHANNEL}:KEY  string: position of the publication with that idempotency key

The braces are literal: a hash tag, so that all keys of a channel live in one slot of a cluster.
"""

from __future__ import annotations

__all__ = ["Keys"]


class Keys:
    """Of one prefix."""

    __slots__ = ("_meta", "_result", "_stream", "channel_prefix")

    def __init__(self, prefix: str) -> None:
        self.channel_prefix = f"{prefix}:ch:{{".encode()
        """What stands before a channel's name in pub/sub; ``}`` stands after it."""
        self._stream = f"{prefix}:stream:{{".encode()
        self._meta = f"{prefix}:meta:{{".encode()
        self._result = f"{prefix}:result:{{".encode()

    def channel(self, name: str) -> bytes:
        """The pub/sub channel."""
        return self.channel_prefix + name.encode() + b"}"

    def stream(self, name: str) -> bytes:
        """What is kept."""
        return self._stream + name.encode() + b"}"

    def meta(self, name: str) -> bytes:
        """Where the stream stands."""
        return self._meta + name.encode() + b"}"

    def result(self, name: str, key: str) -> bytes:
        """What became of the publication with an idempotency key."""
        return self._result + name.encode() + b"}:" + key.encode()
