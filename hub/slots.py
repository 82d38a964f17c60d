"""The slots of a Redis Cluster: where a key belongs, and what the nodes tell about who serves it. No I/O.

A key belongs to one of 16384 slots, by the CRC16 (XMODEM) of its hash tag: what stands between the first
``{`` and the first ``}`` after it, or the whole key where nothing does. Sharded pub/sub channels are keys in
this respect. Source: the Redis Cluster specification.

Every key of a channel is ``PREFIX:…:{CHANNEL}…`` and the prefix holds no brace, so they all have one tag: the
name up to its first ``}``, whatever else is in it. Only a name that begins with ``}``, or an empty one, would
leave the tag empty and tear its keys apart; see ``is_divided``.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from spread.hub.errors import ReplyError

__all__ = [
    "SLOTS",
    "Node",
    "Part",
    "Redirect",
    "is_divided",
    "parse_slots",
    "same_groups",
    "slot_of",
    "slot_of_channel",
    "tag_in",
]

SLOTS = 16384

MAX_PARTS = 1000
"""Primaries of one cluster; Redis recommends no more."""


def slot_of(key: bytes) -> int:
    """The slot of a key, 0 to 16383."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def slot_of_channel(name: str) -> int:
    """The slot of all keys of a channel, unless it ``is_divided``; 0.3 µs."""
    tag, _, _ = name.encode().partition(b"}")
    return crc_hqx(tag, 0) % SLOTS


def is_divided(channel: str) -> bool:
    """The keys of this channel are in different slots, so that no script can touch them together."""
    return not channel or channel.startswith("}")


def tag_in(slots: Collection[int]) -> str:
    """A hash tag whose slot is among these: the same one for the same slots, everywhere.

    It is the smallest number that will do, so that another slot that goes leaves it as it is, and one that
    comes changes it seldom. 0.3 µs for each slot that is not among them, 16384 of which are tried on average
    to find a single one.

    :raises ValueError: there are none.
    """
    if not slots:
        raise ValueError("no slots")
    number = 0
    while crc_hqx(b"%d" % number, 0) % SLOTS not in slots:
        number += 1
    return str(number)


@dataclass(frozen=True, slots=True)
class Node:
    """One process of a cluster."""

    id: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Part:
    """A primary that serves slots, and its replicas, as some node tells it."""

    primary: Node
    replicas: tuple[Node, ...]
    ranges: tuple[tuple[int, int], ...]
    """First and last slot of each, ascending."""

    @property
    def slots(self) -> Iterator[int]:
        """All of them."""
        return (slot for first, last in self.ranges for slot in range(first, last + 1))

    @property
    def ids(self) -> frozenset[str]:
        """Of all nodes."""
        return frozenset((self.primary.id, *(replica.id for replica in self.replicas)))


def parse_slots(reply: Any, asked: str) -> list[Part]:
    """What ``CLUSTER SLOTS`` has given, by primary, in the order of their ids.

    :param asked: the host that answered; a node that does not know its own address leaves it out.
    :raises ValueError: it is no such reply, or a primary has no address.
    """
    heads: dict[str, Node] = {}
    replicas: dict[str, dict[str, Node]] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    try:
        for first, last, primary, *others in reply:
            if not 0 <= first <= last < SLOTS:
                raise ValueError(f"slots {first} to {last}")
            head = _node(primary, asked)
            heads[head.id] = head
            ranges.setdefault(head.id, []).append((first, last))
            of_head = replicas.setdefault(head.id, {})
            for other in others:
                if other[0] != b"?":
                    node = _node(other, asked)
                    of_head[node.id] = node
    except (TypeError, IndexError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"no answer to CLUSTER SLOTS: {error}") from error
    if len(heads) > MAX_PARTS:
        raise ValueError(f"{len(heads)} primaries, above the maximum of {MAX_PARTS}")
    return [
        Part(heads[each], tuple(replicas[each].values()), tuple(sorted(ranges[each])))
        for each in sorted(heads)
    ]


def _node(told: Any, asked: str) -> Node:
    host, port, identity = told[0], told[1], told[2].decode()
    name = host.decode() if host else asked
    if name == "?":
        raise ValueError(f"node {identity} announces no address; set cluster-announce-hostname there")
    if not (isinstance(port, int) and 0 < port < 65536):
        raise ValueError(f"node {identity} announces the port {port}")
    return Node(identity, name, port)


def same_groups(before: Sequence[Part], now: Sequence[Part]) -> list[int | None]:
    """Which group each of ``now`` was ``before``: a group of nodes stays itself when its primary changes.

    By the primary's id; else by a primary that was a replica there; else by who has most of its slots now,
    and more than half of them. Each group is given once; ``None`` is a new one.
    """
    found: list[int | None] = [None] * len(now)
    free = set(range(len(before)))

    def take(index: int, group: int) -> None:
        found[index] = group
        free.discard(group)

    primaries = {part.primary.id: group for group, part in enumerate(before)}
    replicas = {node.id: group for group, part in enumerate(before) for node in part.replicas}
    for known in (primaries, replicas):
        for index, part in enumerate(now):
            group = known.get(part.primary.id)
            if found[index] is None and group is not None and group in free:
                take(index, group)
    for group in sorted(free):
        slots = set(before[group].slots)
        best = max(
            (index for index in range(len(now)) if found[index] is None),
            key=lambda index: sum(slot in slots for slot in now[index].slots),
            default=None,
        )
        if best is not None and 2 * sum(slot in slots for slot in now[best].slots) > len(slots):
            take(best, group)
    return found


@dataclass(frozen=True, slots=True)
class Redirect:
    """``MOVED 3999 10.0.0.1:6379`` or ``ASK …``: who serves a slot."""

    is_ask: bool
    """For this command only: the slot is on its way there."""
    slot: int
    host: str
    """"" where it is that of the server that answered."""
    port: int

    @classmethod
    def of(cls, error: ReplyError) -> Redirect | None:
        """What an error says; ``None`` if it is no redirection, or one that nobody can follow."""
        kind, _, rest = str(error).partition(" ")
        slot, _, address = rest.partition(" ")
        host, colon, port = address.rpartition(":")
        if kind not in ("MOVED", "ASK") or not colon or not slot.isdecimal() or not port.isdecimal():
            return None
        if int(slot) >= SLOTS or not 0 < int(port) < 65536 or host == "?":
            return None
        return cls(kind == "ASK", int(slot), host.removeprefix("[").removesuffix("]"), int(port))
