"""Who owns the channels of an exchange, what owners have saved, and which shards live by their pulses.

The same rules as in ``lua/owner.lua``, ``lua/save_state.lua`` and ``lua/pulse.lua``, in Python.
"""

from __future__ import annotations

import msgspec

from spread.hub.errors import Fenced, MessageTooLarge
from spread.hub.ownership import GIVEN_UP_SECONDS, MAX_STATE_BYTES, OWNER_SECONDS, Ownership
from spread.hub.reactor import Clock

__all__ = ["MemoryOwners"]

SWEEP_SECONDS = 60.0
"""What is out of time is forgotten at the first change after so long."""


class _Owner(msgspec.Struct):
    """Of one channel, the last one."""

    holder: str
    """"" after it has given up."""
    epoch: int
    until: float


class MemoryOwners:
    """What the memory hubs of one exchange share of it; times are the clock's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._owners: dict[str, _Owner] = {}
        self._states: dict[str, tuple[float, bytes]] = {}
        self._pulses: dict[str, float] = {}
        self._sweep_at = 0.0

    def owner_of(self, channel: str) -> Ownership | None:
        """See ``api.Channels``, here and below."""
        owner = self._owner(channel)
        return Ownership(owner.holder, owner.epoch) if owner is not None and owner.holder else None

    def take(self, channel: str, holder: str, over: Ownership | None) -> Ownership:
        """See ``api.Channels``."""
        self._sweep()
        present = self.owner_of(channel)
        if present is not None and present != over:
            return present
        before = self._owner(channel)
        epoch = max(0 if before is None else before.epoch, 0 if over is None else over.epoch) + 1
        self._owners[channel] = _Owner(holder, epoch, self._clock.seconds() + OWNER_SECONDS)
        return Ownership(holder, epoch)

    def give_up(self, channel: str, ownership: Ownership) -> None:
        """See ``api.Channels``."""
        if self.owner_of(channel) == ownership:
            owner = self._owners[channel]
            owner.holder = ""
            owner.until = self._clock.seconds() + GIVEN_UP_SECONDS

    def use(self, channel: str, fence: Ownership) -> None:
        """Something is done under an ownership.

        :raises Fenced: it is over.
        """
        owner = self._owner(channel)
        if owner is None or not owner.holder or (owner.holder, owner.epoch) != (fence.holder, fence.epoch):
            raise Fenced(channel, "" if owner is None else owner.holder, 0 if owner is None else owner.epoch)
        owner.until = self._clock.seconds() + OWNER_SECONDS

    def save(self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int) -> None:
        """See ``api.Channels.save_state``."""
        if len(state) > MAX_STATE_BYTES:
            raise MessageTooLarge(len(state), MAX_STATE_BYTES)
        self._sweep()
        self.use(channel, ownership)
        self._states[channel] = self._clock.seconds() + ttl_seconds, state

    def load(self, channel: str) -> bytes | None:
        """See ``api.Channels.load_state``."""
        until, state = self._states.get(channel, (0.0, b""))
        return state if until > self._clock.seconds() else None

    def pulse(self, incarnation: str, seconds: float) -> frozenset[str]:
        """See ``api.Hub``."""
        now = self._clock.seconds()
        self._pulses[incarnation] = now + seconds
        self._pulses = {shard: until for shard, until in self._pulses.items() if until > now}
        return frozenset(self._pulses)

    def end_pulse(self, incarnation: str) -> None:
        """See ``api.Hub``."""
        self._pulses.pop(incarnation, None)

    def __len__(self) -> int:
        """How many channels are remembered."""
        return len(self._owners.keys() | self._states.keys())

    def _owner(self, channel: str) -> _Owner | None:
        owner = self._owners.get(channel)
        return owner if owner is not None and owner.until > self._clock.seconds() else None

    def _sweep(self) -> None:
        now = self._clock.seconds()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._owners = {name: owner for name, owner in self._owners.items() if owner.until > now}
            self._states = {name: kept for name, kept in self._states.items() if kept[0] > now}
