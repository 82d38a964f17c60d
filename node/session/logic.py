"""What sessions ask a team's own code: the one thing that they know of it.

A shard without an app has no ``Logic``. Where it has one, what is ``None`` here is not asked at all, so
that only hooks that the app has cost anything. Answers come at once or as a Deferred; they fail with
``shared.Refused`` or ``shared.Ended``, and with nothing else: whatever goes wrong in the team's code has
become one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from spread.hub.api import Format
    from spread.node.codes import Disconnect
    from spread.node.session.subscribing import Grant

__all__ = ["Admitted", "Answer", "Logic", "Party"]

T = TypeVar("T")
Answer: TypeAlias = "T | Deferred[T]"


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """Who a client is, and what it begins with."""

    user: str
    info: bytes
    """``conn_info``."""
    expire_at: int
    """Seconds since 1970; 0: never."""
    channels: tuple[str, ...]
    """Those it is in from the start, besides those of its token."""
    data: bytes
    """For the connect result."""


class Party(Protocol):
    """A session, of whatever protocol, as the app's ``Client`` needs it."""

    app_client: Any
    """What the app knows it by; ``None`` until it is first needed."""

    @property
    def number(self) -> int:
        """Unique on this shard, never 0."""
        ...

    @property
    def client(self) -> str:
        """Its id, unique in the cluster."""
        ...

    @property
    def user(self) -> str: ...
    @property
    def conn_info(self) -> bytes: ...
    @property
    def transport(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def channels(self) -> Collection[str]:
        """Those it is a member of."""
        ...

    @property
    def protocol(self) -> str:
        """``json``, ``protobuf`` or ``text``."""
        ...

    def tell(self, data: bytes) -> bool:
        """Push a message in no channel. ``False``: it cannot be told (any more)."""
        ...

    def subscribe(self, channel: str, grant: Grant) -> Deferred[int]:
        """Make it a member without asking; 1, or 0 if it is one already, has gone, or cannot be: there is no
        such namespace, or it is in too many channels. A text client, which is in one channel at a time,
        leaves its own; it cannot be while it is on its way into another, or waits for ``publishing``."""
        ...

    def leave(self, channel: str) -> bool:
        """Take it out of a channel, and tell it so; ``False``: it is not in there, or a text client."""
        ...

    def dismiss(self, disconnect: Disconnect) -> None:
        """End its connection. Idempotent."""
        ...


class Logic(Protocol):
    """The team's code, as sessions see it."""

    connecting: Callable[[Party], Answer[Admitted | None]] | None
    """Who is it? Its ``user`` is what its token says, "" without one. ``None``: as the token says."""

    subscribing: Callable[[Party, str], Answer[Grant | None]] | None
    """May it come into this channel? ``None``: as its namespace says."""

    publishing: Callable[[Party, str, bytes, Format], Answer[tuple[bytes, Format] | None]] | None
    """What is published of this; ``None``: nothing, and the client is told that all is well."""

    message: Callable[[Party, bytes], Answer[None]] | None
    """It has sent this."""

    def arrived(self, party: Party, data: bytes) -> None:
        """It asks to be connected, with this."""
        ...

    def connected(self, party: Party) -> None:
        """It has been told that it is, and will be told what is said from now on."""
        ...

    def disconnected(self, party: Party, reason: str) -> None:
        """It is not any more, and in no channel. Once for every ``connected``."""
        ...

    def subscribed(self, party: Party, channel: str) -> None:
        """It is a member, and was told so."""
        ...

    def unsubscribed(self, party: Party, channel: str) -> None:
        """It is not any more."""
        ...

    def rpc(self, party: Party, method: str, data: bytes) -> Answer[bytes]:
        """A call of the client; gives its result."""
        ...
