"""What the shards say to each other about owned channels, as bodies of relays of the kind ``owners``.

    question   answer       what
    Hello      Offer        which channels the app of a shard looks after
    Report     Reported     who is in which channels on a shard
    Batch      Outcomes     commands for the objects of a shard; those that are not done yet are left out
    Outcomes   b""          of commands that were not done yet
    Release    Released     another shard is to own the channel: hand it over
    Bye        b""          a shard stops

One byte of version, then msgpack. A shard that meets another version fails the question, which its asker is
told; a field may be added with a default.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

import msgspec

__all__ = [
    "KIND",
    "Batch",
    "Bye",
    "Call",
    "ChannelReport",
    "Hello",
    "Offer",
    "Outcome",
    "Outcomes",
    "Question",
    "Release",
    "Released",
    "Report",
    "Reported",
    "Result",
    "Row",
    "decoded",
    "encoded",
    "question",
]

KIND = "owners"

VERSION = b"\x01"


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A client in a channel."""

    id: str
    user: str
    info: bytes = b""
    """What its connection's token says of it; JSON, or b""."""


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What the app of a shard looks after: patterns of channels."""

    objects: frozenset[str] = frozenset()
    """For which it has objects."""
    watch: frozenset[str] = frozenset()
    """Of which it wants to hear that they are occupied and vacated."""


class ChannelReport(msgspec.Struct, frozen=True, array_like=True):
    """Who is in a channel on one shard."""

    channel: str
    is_full: bool
    """``joined`` are all; else who has come since the report before."""
    joined: list[Row]
    left: list[str]
    """Ids."""
    is_more: bool = False
    """More follows; until it is there, what was known before the full report counts."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A command for the object of a channel."""

    number: int
    """Given by the calling shard, never used twice."""
    channel: str
    command: str
    member: Row | None
    """Who commands; ``None``: the app itself."""
    params: bytes
    """JSON."""
    seconds: float
    """So long the caller waits from now: what has not begun by then must not begin."""


class Result(IntEnum):
    """What came of a command."""

    DONE = 0
    REFUSED = 1
    """It is answered with an error."""
    ENDED = 2
    """It ends the connection of who commands."""
    NOT_HERE = 3
    """Nothing was done: the channel is not this shard's, or its object is not there. Ask again."""
    UNKNOWN = 4
    """It was begun, and what became of it will never be known."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What came of a command."""

    number: int
    result: Result
    data: bytes = b""
    """What it gave, as JSON; of ``DONE``."""
    code: int = 0
    """Of ``REFUSED`` and ``ENDED``."""
    message: str = ""
    temporary: bool = False


class Hello(msgspec.Struct, frozen=True, tag=True):
    """What the app of the asking shard looks after; asks for the same."""

    offer: Offer
    is_first: bool
    """The asking shard knows nothing of the asked one: it must be told everything that it is to know."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """Who is in which channels."""

    channels: list[ChannelReport]


class Reported(msgspec.Struct, frozen=True):
    """The channels that the asked shard does not look after, as far as it knows: nothing of them was kept."""

    refused: list[str]


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Commands, in their order."""

    calls: list[Call]


class Outcomes(msgspec.Struct, frozen=True, tag=True):
    """What came of commands."""

    outcomes: list[Outcome]


class Release(msgspec.Struct, frozen=True, tag=True):
    """Hand over a channel."""

    channel: str


class Released(msgspec.Struct, frozen=True):
    """Whether the asked shard has nothing to do with the channel any more."""

    is_free: bool


class Bye(msgspec.Struct, frozen=True, tag=True):
    """The asking shard stops."""


Question = Hello | Report | Batch | Outcomes | Release | Bye

T = TypeVar("T")

_QUESTION = msgspec.msgpack.Decoder(Question)
_encode = msgspec.msgpack.Encoder().encode


def encoded(value: msgspec.Struct) -> bytes:
    """The body of a relay, or of the answer to one."""
    return VERSION + _encode(value)


def question(body: bytes) -> Question:
    """What is asked.

    :raises ValueError: it is of another version, or malformed.
    """
    read: Question = _QUESTION.decode(_checked(body))
    return read


def decoded(body: bytes, type: type[T]) -> T:
    """An answer.

    :raises ValueError: it is of another version, or malformed.
    """
    return msgspec.msgpack.decode(_checked(body), type=type)


def _checked(body: bytes) -> bytes:
    if body[:1] != VERSION:
        raise ValueError(f"version {body[:1].hex() or 'none'} of what shards say about owned channels")
    return body[1:]
