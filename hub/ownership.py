"""Who owns a channel, and which shards live: that part of the promise of ``api``.

An owner is a shard that does alone what has to be done once for a channel. It proves to be the owner with
each thing that it does: the hub compares holder and epoch in the same step. So one that stood still, or was
cut off, while another took over can do no harm when it is back; and nobody has to be sure that it is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

__all__ = [
    "GIVEN_UP_SECONDS",
    "MAX_PULSE_SECONDS",
    "MAX_STATE_BYTES",
    "OWNER_SECONDS",
    "Owned",
    "Ownership",
    "Pulsing",
]

MAX_STATE_BYTES = 1 << 20
"""What ``Owned.save_state`` takes at most."""

OWNER_SECONDS = 86400
"""How long an ownership is remembered after the last use."""

GIVEN_UP_SECONDS = 3600
"""How long an epoch is remembered after it was given up.

Not long, since channels may have names that clients make up. It need not be: the fence of a former owner
differs from all that may come by its holder, too."""

MAX_PULSE_SECONDS = 60.0
"""What ``Pulsing.pulse`` may be given: a longer pulse is taken for one from before the clock was set back."""


class Ownership(msgspec.Struct, frozen=True, gc=False):
    """Who owns a channel. Two are the same only if both of their fields are."""

    holder: str
    """The incarnation of a shard, which may have died."""
    epoch: int
    """1, 2, 3 …: one more with each owner."""


class Owned(Protocol):
    """What a hub does about the owner of a channel."""

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """Who owns a channel, dead or alive; ``None``: nobody does.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """This shard owns the channel from now on, if nobody does, or ``over``; gives who owns it then:
        look at its ``holder``. The epoch is one more than any before it, that of ``over`` included.

        It ends with ``give_up``, when another takes the channel over, and a day after its last use:
        a publication under its fence, or a state that is saved.

        :raises HubUnavailable: the hub did not answer. Whether it was taken is told by another call.
        """
        ...

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """Nobody owns the channel any more, if ``ownership`` did. Idempotent; the epoch stays.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """Keep what the owner of a channel knows, for ``ttl_seconds`` from now, in place of what was kept.

        :raises Fenced: ``ownership`` does not own the channel (any more).
        :raises MessageTooLarge: above ``MAX_STATE_BYTES``; nothing was sent.
        :raises HubUnavailable: the hub did not answer; it may be kept.
        """
        ...

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """What was saved last, by whichever owner; ``None``: nothing is kept.

        :raises HubUnavailable: the hub did not answer.
        """
        ...


class Pulsing(Protocol):
    """What a hub does about lives that are to be short."""

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """This shard lives, for so long from now by the hub's clock; gives the incarnations of all that live
        by their pulses, this one included.

        Quicker than the roster, and for those that must know who else is there to share work with. After an
        outage of the hub, or when it has lost its data, each shard is there as soon as it has told again.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def end_pulse(self) -> Deferred[None]:
        """This shard is not among those that live any more, until its next pulse.

        :raises HubUnavailable: the hub did not answer.
        """
        ...
