"""What is kept in the hub of an object: the team's state, and who was a member.

The members are kept, too, so that a new object can be told who has left since: whoever was a member in the
snapshot stays one until the shard it was on has said otherwise, or has died.
"""

from __future__ import annotations

from typing import Any

import msgspec

from spread.node.owners.wire import Row

__all__ = ["Kept", "Saved", "frozen", "thawed"]

VERSION = b"\x01"


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A member, and the incarnation of the shard it was on."""

    row: Row
    shard: str


class Saved(msgspec.Struct, frozen=True):
    """A snapshot."""

    state: Any
    members: list[Kept]


_DECODER = msgspec.msgpack.Decoder(Saved)


def frozen(saved: Saved) -> bytes:
    """As bytes.

    :raises TypeError: the state is no plain data. Other errors of msgspec, too.
    """
    return VERSION + msgspec.msgpack.encode(saved)


def thawed(kept: bytes | None) -> Saved | None:
    """What was kept; ``None``: nothing.

    :raises ValueError: it is of another version, or malformed.
    """
    if not kept:
        return None
    if kept[:1] != VERSION:
        raise ValueError(f"a snapshot of version {kept[:1].hex()}")
    return _DECODER.decode(kept[1:])
