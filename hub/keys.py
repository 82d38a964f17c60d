"""The names in Redis: those that belong to a channel, and those of shards.

    PREFIX:ch:{CHANNEL}          pub/sub channel
    PREFIX:stream:{CHANNEL}      stream: entry OFFSET-0, field ``d``: a message as subscribers get it
    PREFIX:meta:{CHANNEL}        hash: ``e`` epoch, ``s`` top offset, ``v`` and ``w`` version and its epoch,
                                 ``g`` generation (see ``lineage``), ``p`` the epochs before, newest first,
                                 ``i`` + incarnation: last sequence taken of that shard, and its offset
    PREFIX:result:{CHANNEL}:KEY  string: position of the publication with that idempotency key
    PREFIX:owner:{CHANNEL}       hash: ``h`` incarnation of the owner, ``e`` its epoch, see ``owners``
    PREFIX:state:{CHANNEL}       string: what an owner has saved

The braces are literal: a hash tag, so that all keys of a channel live in one slot of a cluster.

    PREFIX:shard:N               lease of a shard number
    PREFIX:roster                hash: shard number → time of the heartbeat and a row
    PREFIX:lives                 sorted set: incarnation by its last heartbeat; 0: it is known to be dead
    PREFIX:register:INCARNATION  hash: whom that shard has told as present or joined
    PREFIX:pulses                sorted set: incarnation by the millisecond until which it lives
    PREFIX:reaping:INCARNATION   string: who clears up after that shard, or ``done``

Where the prefix is a hash tag itself, as in a cluster, these live in one slot. No script may touch keys of a
channel and keys of a shard.
"""

from __future__ import annotations

__all__ = ["Keys", "ShardKeys"]


class Keys:
    """Of one prefix."""

    __slots__ = ("_meta", "_owner", "_result", "_state", "_stream", "channel_prefix")

    def __init__(self, prefix: str) -> None:
        self.channel_prefix = f"{prefix}:ch:{{".encode()
        """What stands before a channel's name in pub/sub; ``}`` stands after it."""
        self._stream = f"{prefix}:stream:{{".encode()
        self._meta = f"{prefix}:meta:{{".encode()
        self._result = f"{prefix}:result:{{".encode()
        self._owner = f"{prefix}:owner:{{".encode()
        self._state = f"{prefix}:state:{{".encode()

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

    def owner(self, name: str) -> bytes:
        """Who owns it."""
        return self._owner + name.encode() + b"}"

    def state(self, name: str) -> bytes:
        """What an owner has saved."""
        return self._state + name.encode() + b"}"


class ShardKeys:
    """Of one prefix; in a cluster it is a hash tag, ``{spread}`` say."""

    __slots__ = ("_prefix", "lives", "pulses", "roster")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.roster = f"{prefix}:roster".encode()
        """Which shards there are."""
        self.lives = f"{prefix}:lives".encode()
        """When each incarnation was last heard of."""
        self.pulses = f"{prefix}:pulses".encode()
        """Until when each incarnation lives, by what it told last."""

    def lease(self, shard: int) -> bytes:
        """Who has a number."""
        return f"{self._prefix}:shard:{shard}".encode()

    def register(self, incarnation: str) -> bytes:
        """Whom a shard has told as present or joined."""
        return f"{self._prefix}:register:{incarnation}".encode()

    def reaping(self, incarnation: str) -> bytes:
        """Who clears up after a dead shard; stays for a while when that is done."""
        return f"{self._prefix}:reaping:{incarnation}".encode()
