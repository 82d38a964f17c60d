"""What all sessions of the Centrifuge protocol on a shard share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred

from spread.hub.api import Hub
from spread.hub.reactor import Clock
from spread.node.auth.tokens import ConnectionToken, SubscriptionToken
from spread.node.channels import Channels
from spread.node.codes import Disconnect, Error
from spread.node.limits import Rate
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.pressure import Pressure
from spread.node.session.logic import Logic
from spread.node.settings import ClientSettings
from spread.node.wheel import Wheel

if TYPE_CHECKING:
    from spread.node.session.subscribing import Grant

__all__ = ["TTL_MAX_SECONDS", "Ended", "Refused", "Registry", "Shared", "Tokens"]

TTL_MAX_SECONDS = 2**31 - 1
"""The protocol has 32 bits for it, and some SDKs read them as signed. An ``exp`` in milliseconds is above."""


class Refused(Exception):
    """A command is answered with an error; the connection lives on.

    :param detail: for the log.
    """

    def __init__(self, error: Error, detail: str = "") -> None:
        super().__init__(error, detail)
        self.error = error
        self.detail = detail


class Ended(Exception):
    """A command ends the connection.

    :param detail: for the log.
    """

    def __init__(self, disconnect: Disconnect, detail: str = "") -> None:
        super().__init__(disconnect, detail)
        self.disconnect = disconnect
        self.detail = detail


class Tokens(Protocol):
    """Who verifies tokens; both fail with ``TokenExpired``, ``TokenInvalid`` or ``JwksUnavailable``."""

    def verify_connection(self, token: str, /) -> Deferred[ConnectionToken]: ...
    def verify_subscription(self, token: str, /) -> Deferred[SubscriptionToken]: ...


class Account(Protocol):
    """A session, as the registry knows it."""

    @property
    def number(self) -> int: ...
    @property
    def client(self) -> str: ...
    @property
    def user(self) -> str: ...


class Registry(Protocol):
    """All sessions of the shard, as one of them sees them."""

    def connected(self, session: Account) -> bool:
        """It has a user now; ``False``: that user has as many connections as it may."""
        ...

    def gone(self, session: Account, address: str) -> None:
        """Its connection is gone."""
        ...

    def rate_of(self, user: str) -> Rate | None:
        """What the user may do in a second, all its connections on this shard together."""
        ...

    def alone(self, session: Account) -> None:
        """End all other connections of its user, on all shards (``single_connection``)."""
        ...

    def bring(self, session: Account, channel: str, grant: Grant) -> Deferred[int]:
        """Subscribe it to a channel without asking; 0 if it is in there already, or cannot be."""
        ...

    def note(self, session: Account, what: str, why: str) -> None:
        """Log something about a client; a flood of that is told in numbers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """See the line at the top."""

    clock: Clock
    now: Callable[[], float]
    """Seconds since 1970."""
    random: Callable[[], float]
    """From 0 to 1."""
    hub: Hub
    channels: Channels
    pressure: Pressure
    counters: ShardCounters
    wheel: Wheel
    registry: Registry
    client: ClientSettings
    namespaces: Namespaces
    tokens: Tokens | None
    """``None``: no key is configured."""
    subscription_tokens: Tokens | None
    node: str
    """The incarnation of this shard."""
    version: str
    """As clients are told it."""
    hub_seconds: float
    """How long a command may wait for the hub before it fails."""
    logic: Logic | None = None
    """The team's own code, if there is any."""
    tables: Callable[[], bytes] | None = None
    """Gives what ``$tables`` announces; ``None`` without tables."""

    def ttl(self, expire_at: int) -> int:
        """What a client is told of when it expires: whole seconds from now, at least 1.

        :param expire_at: seconds since 1970; 0: never, and so is the answer.
        """
        return min(TTL_MAX_SECONDS, max(1, int(expire_at - self.now()))) if expire_at else 0
