"""Who talks to slow receivers is slowed down, so that receivers which do read are not cut.

A publisher can put messages in faster than the fan-out's receivers, each of them behind its own socket and
its own event loop, take them out: one client writing 400 MB/s to twenty others asks for 8 GB/s. Without
more, every outbox runs over and healthy clients are closed.

So when an outbox is over half of its limit, its channel is *pressed*: here at once, and on all other
shards that have members by a word over the hub. While a channel is pressed, a session that has said
something in it is not read again until ``HOLD_SECONDS`` have passed; TCP tells its client to wait.

What is on its way already is dealt with by rests of the fan-out, see there.

This is a slowing down, never a stop: each publisher still gets one read (64 KiB at most) through in each
period. So a receiver that cannot take even that is over its limit soon and is closed, and the worst it
can do to a channel is to slow its publishers to some 1.6 MB/s each for that time.
"""

from __future__ import annotations

from typing import Protocol

from spread.hub.api import Hub
from spread.hub.reactor import Clock
from spread.node.metrics import ShardCounters

__all__ = ["HOLD_SECONDS", "Pressure", "Publisher"]

HOLD_SECONDS = 0.04


class Publisher(Protocol):
    """A session that can be held."""

    def released(self) -> None:
        """The pressure is over; go on reading."""


class _Pressed:
    __slots__ = ("held", "told_at", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.told_at = 0.0
        self.held: list[Publisher] = []


class Pressure:
    """The pressed channels of one shard; there are as many as have slow members right now."""

    def __init__(self, clock: Clock, hub: Hub, counters: ShardCounters) -> None:
        self._clock = clock
        self._hub = hub
        self._counters = counters
        self._channels: dict[str, _Pressed] = {}

    def felt(self, channel: str) -> None:
        """A member of this shard is slow: press the channel here, and tell the others."""
        pressed = self._press(channel)
        now = self._clock.seconds()
        # Twice in a period is enough to keep it up, and bounds what it costs the hub.
        if now - pressed.told_at >= HOLD_SECONDS / 2:
            pressed.told_at = now
            self._counters.pressed += 1
            self._hub.press(channel)

    def heard(self, channel: str) -> None:
        """A member of some shard is slow."""
        self._press(channel)

    def hold(self, channel: str, publisher: Publisher) -> bool:
        """``True`` if the channel is pressed; ``publisher.released`` is then called when it is no more."""
        pressed = self._channels.get(channel)
        if pressed is None:
            return False
        pressed.held.append(publisher)
        return True

    def _press(self, channel: str) -> _Pressed:
        pressed = self._channels.get(channel)
        if pressed is None:
            pressed = self._channels[channel] = _Pressed()
            self._clock.callLater(HOLD_SECONDS, self._period_over, channel)
        pressed.until = self._clock.seconds() + HOLD_SECONDS
        return pressed

    def _period_over(self, channel: str) -> None:
        """Let everybody who was held say one thing more; the channel stays pressed while it is felt."""
        pressed = self._channels[channel]
        held, pressed.held = pressed.held, []
        if pressed.until > self._clock.seconds():
            self._clock.callLater(HOLD_SECONDS, self._period_over, channel)
        else:
            del self._channels[channel]
        for publisher in held:
            publisher.released()
