"""From an event of a channel to the bytes that clients get: once for each encoder, however many receive it.

A client has a *codec*: an encoder, which depends on its protocol, and a framing, which depends on its
transport. All JSON clients share one encoder, so a publication is encoded once for them and then framed
once for WebSocket, once for lines, and so on. ``spread.node.channel`` sees to that.

Delta compression makes two codecs more of each: ``full`` for a subscription that has negotiated it and has no
publication yet to which the next one could be told as a difference, and ``full.then`` for one that has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spread.hub.api import Joined, Left, Publication
from spread.node.wire.messages import Command, Reply

__all__ = ["Codec", "Encoder", "Event", "Wire"]

Event = Publication | Joined | Left


class Encoder(Protocol):
    """Encodes the events of channels. Compared by identity: there is one for each way of encoding."""

    def __call__(self, channel: str, event: Event, previous: Publication | None, /) -> bytes | None:
        """One encoded message, not framed; ``None``: clients of this encoder get nothing.

        :param previous: the publication before, as the base of a difference, if there is one.
        """
        ...


class Wire(Protocol):
    """A protocol of SDKs: ``spread.node.wire.json`` or ``spread.node.wire.protobuf``."""

    PING: bytes

    def decode(self, frame: bytes, /) -> list[Command]: ...
    def encode_reply(self, reply: Reply, /) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """How one kind of client is written to. One object for each kind, compared by identity."""

    name: str
    """``json/websocket`` and the like."""
    protocol: str
    """``text``, ``json`` or ``protobuf``."""
    encoder: Encoder
    frame: Callable[[bytes], bytes]
    """One encoded message as bytes for the socket."""
    pack: Callable[[Sequence[bytes]], bytes]
    """Several encoded messages as bytes for the socket, in as few frames as the transport can."""
    wire: Wire | None = None
    """``None`` for text."""
    full: Codec | None = None
    """The codec of a subscription that has negotiated delta compression, for its first publication."""
    then: Codec | None = None
    """The codec that takes over after one publication."""
    is_delta: bool = False
    """Delta compression is negotiated: one of the two codecs for that."""
