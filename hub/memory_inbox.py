"""What is on its way to one memory hub, and how far it has handed over the channels it follows.

A channel is followed when it is subscribed with a history: its receiver gets offset n+1 only after n. An
exchange delivers in order, so only a cut, or the loss of all that is kept, can make a hole; it is filled
from the streams, at once.
"""

from __future__ import annotations

from collections import deque

from spread.hub.api import Broken, Event, History, HubCounters, Position, Publication, Receiver
from spread.hub.memory_streams import Place, Streams
from spread.hub.reactor import Clock, Timer

__all__ = ["MemoryInbox"]


class MemoryInbox:
    """Of one hub. Deliveries take a turn of the reactor."""

    def __init__(self, clock: Clock, streams: Streams, counters: HubCounters) -> None:
        self._clock = clock
        self._streams = streams
        self._counters = counters
        self._receiver: Receiver | None = None
        self._waiting: deque[tuple[str, Event]] = deque()
        self._waits_since = 0.0
        self._turn: Timer | None = None
        self._is_paused = False
        self._followed: dict[str, tuple[Place, History]] = {}

    def start(self, receiver: Receiver) -> None:
        """From now on there is somebody to deliver to."""
        self._receiver = receiver

    def stop(self) -> None:
        """Deliver nothing any more. Idempotent."""
        self._receiver = None
        self.lose()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def arrive(self, channel: str, event: Event) -> None:
        """To be handed over in a turn of the reactor to come, in this order."""
        self._put(channel, event)
        self._soon()

    def lose(self) -> float:
        """What was not handed over never will be. Gives when the first of it came; now, if nothing waits."""
        since = self._waits_since if self._waiting else self._clock.seconds()
        self._waiting.clear()
        return since

    def pause(self) -> None:
        """Hand over nothing until ``resume``."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on."""
        self._is_paused = False
        self._soon()

    # -- channels that are followed --------------------------------------------------------------------

    def follow(self, channel: str, history: History, is_heard: bool) -> None:
        """Hand over all publications of a channel from here on. Again: nothing changes but the history.

        :param is_heard: it was subscribed before, without a history.
        """
        followed = self._followed.get(channel)
        if followed is not None:
            self._followed[channel] = (followed[0], history)
            return
        top = self._streams.position(channel, history)
        place = Place(top.epoch, top.offset)
        if is_heard:
            # What is on its way to those who heard it before is still theirs.
            for name, event in self._waiting:
                if name == channel and isinstance(event, Publication) and event.epoch == top.epoch:
                    place.offset = event.offset - 1
                    break
        self._followed[channel] = (place, history)
        self._counters.followed_channels += 1

    def unfollow(self, channel: str) -> None:
        """Nobody needs it. Idempotent."""
        if self._followed.pop(channel, None) is not None:
            self._counters.followed_channels -= 1
            # Who follows it again begins elsewhere, perhaps before all this was handed over.
            self._waiting = deque(entry for entry in self._waiting if entry[0] != channel)

    def position(self, channel: str) -> Position:
        """How far a followed channel was handed over."""
        place, _ = self._followed[channel]
        return Position(place.epoch, place.offset)

    def catch_up(self) -> None:
        """Put in what was missed of all followed channels while nothing arrived."""
        for channel, (place, history) in self._followed.items():
            for event in self._streams.since(channel, history, place):
                self._counters.repaired += isinstance(event, Publication)
                self._put(channel, event)
        self._soon()

    # -- inside ----------------------------------------------------------------------------------------

    def _put(self, channel: str, event: Event) -> None:
        if not self._waiting:
            self._waits_since = self._clock.seconds()
        self._waiting.append((channel, event))

    def _soon(self) -> None:
        if self._turn is None and self._waiting and not self._is_paused:
            self._turn = self._clock.callLater(0, self._deliver)

    def _deliver(self) -> None:
        self._turn = None
        receiver = self._receiver
        if receiver is None:
            return
        for _ in range(len(self._waiting)):
            if self._is_paused or not self._waiting:
                break
            channel, event = self._waiting.popleft()
            followed = self._followed.get(channel)
            if followed is None:
                self._hand_over(receiver, channel, event)
            else:
                self._hand_over_in_order(receiver, channel, event, *followed)
        receiver.read_done()
        self._soon()

    def _hand_over(self, receiver: Receiver, channel: str, event: Event) -> None:
        if isinstance(event, Publication):
            self._counters.received += 1
        receiver.received(channel, event)

    def _hand_over_in_order(
        self, receiver: Receiver, channel: str, event: Event, place: Place, history: History
    ) -> None:
        events = [event]
        if isinstance(event, Publication) and event.offset:
            if event.epoch == place.epoch and event.offset <= place.offset:
                return  # it was handed over already
            if event.epoch != place.epoch or event.offset != place.offset + 1:
                # What comes after it is on its way, and so is what has no offset and stands between.
                missing = self._streams.since(channel, history, place)
                events = [each for each in missing if _is_up_to(each, event)]
                missed = sum(isinstance(each, Publication) for each in events) - 1
                self._counters.repaired += max(0, missed)
        for each in events:
            if isinstance(each, Broken):
                self._counters.broken += 1
                place.epoch, place.offset = each.position.epoch, each.position.offset
            elif isinstance(each, Publication) and each.offset:
                place.offset = each.offset
            self._hand_over(receiver, channel, each)


def _is_up_to(missing: Event, event: Publication) -> bool:
    """It is of the same stream, and does not come after the event."""
    if isinstance(missing, Broken):
        return missing.position.epoch == event.epoch
    return (
        isinstance(missing, Publication) and missing.epoch == event.epoch and missing.offset <= event.offset
    )
