"""Between an edge and a session of the Centrifuge protocol: what each asks of the other.

An edge carries frames and knows nothing of commands; a session decides and never touches a transport. The
edge hands over each frame as it came (a WebSocket message, a line, the body of a request); the session
writes encoded frames into the outbox that the edge made.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from spread.node.codec import Codec
from spread.node.codes import Disconnect
from spread.node.cork import Cork
from spread.node.outbox import Outbox

__all__ = ["Edge", "EdgeSession", "Sessions", "Visit"]


class Edge(Protocol):
    """What a session asks of its connection."""

    def pause_reading(self) -> None:
        """Hand over no more for now; TCP tells the peer to wait. Idempotent."""

    def resume_reading(self) -> None:
        """Go on. Idempotent."""

    def close(self, disconnect: Disconnect) -> None:
        """Send what waits in the outbox, then say why, then end the connection; all of it within some
        seconds. Nothing is handed over any more; ``EdgeSession.lost`` is still called at the end. Idempotent.
        """

    def cut(self) -> None:
        """Drop the connection now, without a word."""


class EdgeSession(Protocol):
    """What an edge asks of its session."""

    def received(self, frame: bytes) -> None:
        """One frame of the peer: one or more commands."""

    def end(self, disconnect: Disconnect) -> None:
        """The edge has found something wrong (a frame that is too large, an outbox over its limit): the
        session must end. It calls ``Edge.close`` with this, once."""

    def lost(self) -> None:
        """The connection is gone. Called exactly once for every opened session."""


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """Where a connection comes from."""

    transport: str
    """``websocket``, ``http_stream``, ``sse`` or ``json``."""
    address: str
    """The peer's IP address."""
    user: str = ""
    """The value of the header ``client.user_id_http_header``, if that is set: a trusted user id."""
    is_emulated: bool = False
    """Frames of the client come with requests of their own (``http_stream``, ``sse``): its connect result
    must name session and node."""
    has_native_pings: bool = False
    """The edge pings with means of its own (``cf_ws_frame_ping_pong``): none of the protocol's pings."""


class Sessions(Protocol):
    """All sessions of this shard: what edges open them with."""

    @property
    def cork(self) -> Cork:
        """For new outboxes."""
        ...

    @property
    def outbox_max_bytes(self) -> int:
        """For new outboxes: ``client.queue_max_size``."""
        ...

    def admit(self, address: str) -> str:
        """Count one more client: "" if it may connect, else why not, in words for its log. Whoever was
        admitted must be opened or released."""
        ...

    def release(self, address: str) -> None:
        """A client that was admitted is not opened after all."""
        ...

    def open(self, edge: Edge, outbox: Outbox, codec: Codec, visit: Visit) -> EdgeSession:
        """A session for a client that was admitted; its place is given back by ``lost``."""
        ...
