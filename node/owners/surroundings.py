"""What the objects of a shard need from around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from spread.hub.api import Ownership
from spread.hub.reactor import Clock
from spread.node.owners.counters import OwnersCounters
from spread.node.owners.gate import Gate
from spread.node.owners.live import Live, Pulses

__all__ = ["Host", "Hub", "Limits", "Surroundings"]


class Hub(Pulses, Protocol):
    """The part of a hub that is needed here."""

    def owner_of(self, channel: str) -> Deferred[Ownership | None]: ...
    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]: ...
    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]: ...
    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]: ...
    def load_state(self, channel: str) -> Deferred[bytes | None]: ...


class Host(Protocol):
    """Who runs the app."""

    @property
    def app(self) -> Any:
        """The app, in the version that runs."""
        ...

    def call(
        self,
        hook: str,
        client: None,
        function: Callable[..., Any],
        *args: Any,
        convert: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Call the team's code; gives its answer, or a Deferred of it, that fails after some time.

        :param convert: what is made of the answer; its errors are the code's.
        :raises Refused: what went wrong was logged; so may the Deferred, as with the next.
        :raises Ended: and nothing else.
        """
        ...

    def notify(self, hook: str, client: None, function: Callable[..., Any], *args: Any) -> None:
        """The same for code that has nothing to say."""
        ...

    def tell(self, hook: str, channel: str) -> None:
        """``occupied`` or ``vacated``, if the app has such a hook."""
        ...

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        exclude: Any = (),
        tags: dict[str, str] | None = None,
        idempotency_key: str = "",
        fence: Ownership | None = None,
    ) -> Deferred[Any]:
        """See ``App.publish``."""
        ...

    def send(self, data: Any, user: str | None, client: str) -> Deferred[int]:
        """See ``App.send``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Settings of the section ``app``."""

    max_objects: int = 10_000
    """On this shard."""
    max_reported_members: int = 1_000_000
    """Reported to this shard, of all its channels together."""
    max_commands: int = 10_000
    """That wait on this shard: for their answers, and for their objects."""
    snapshot_max_bytes: int = 1 << 20
    """1 MiB at most: a hub takes no more."""
    snapshot_ttl_seconds: int = 3600
    """How long a snapshot outlives the last shard that could have made a newer one."""
    command_seconds: float = 5.0
    """How long a command may take, the search for the owner included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """See the line at the top."""

    clock: Clock
    steady: Callable[[], float]
    """Seconds by a clock that is never set."""
    hub: Hub
    host: Host
    live: Live
    counters: OwnersCounters
    limits: Limits
    shard: str
    """The incarnation of this one."""
    gate: Gate
    """For what channels ask the hub while they are opened: when a shard dies there may be hundreds, and the
    pulse of this one must not wait for all of them."""
    release: Callable[[str, str], Deferred[bool]]
    """Asks a shard to hand over a channel; ``True``: it has nothing to do with it any more."""
