"""From the hub to the outboxes: what a shard does with each publication it receives.

One read from Redis can hold 455 small messages, and a channel a thousand members: half a million
deliveries. They are made in slices of ``slice_seconds``; between two slices the reactor serves everything
else. Publications are delivered one after the other, so the order within a channel holds across slices.

What has been read and not yet delivered is the inbox. Above ``inbox_max_bytes`` the hub is paused, and
resumed below half of it: the rest waits in Redis and in the kernel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from spread.hub.api import Event, Hub, Publication
from spread.hub.reactor import Clock, Timer
from spread.node.channels import Channels
from spread.node.cork import Cork
from spread.node.metrics import ShardCounters
from spread.node.pressure import Pressure

__all__ = ["Fanout"]

PUBLICATION_BYTES = 220
"""What a waiting event costs besides its data: its objects. Without it, an inbox bounded to 4 MiB could
hold a million tiny ones."""

REST_SECONDS = 0.005
REST_EVERY_BYTES = 65536
"""Between two rests at least so many bytes of publications are delivered: 13 MB/s, whoever is behind."""

PUBLICATIONS_PER_LOOK = 8
"""Publications delivered between two looks at the clock."""

RUN_MAX_PUBLICATIONS = 64
RUN_MAX_BYTES = 16384
"""Publications of one channel in a row are one write to each member, up to so many."""


class Fanout:
    """The shard's ``hub.api.Receiver``.

    :param answer: who answers the questions of other shards.
    :param incarnation: the 8 bytes that mark this shard's own publications.
    :param now: seconds with a resolution well below a millisecond.
    """

    log = Logger("spread.node.fanout")

    def __init__(
        self,
        clock: Clock,
        now: Callable[[], float],
        *,
        hub: Hub,
        channels: Channels,
        cork: Cork,
        pressure: Pressure,
        counters: ShardCounters,
        answer: Callable[[bytes], Deferred[bytes]],
        incarnation: bytes,
        slice_seconds: float,
        inbox_max_bytes: int,
    ) -> None:
        self._clock = clock
        self._now = now
        self._hub = hub
        self._channels = channels
        self._cork = cork
        self._pressure = pressure
        self._counters = counters
        self._answer = answer
        self._incarnation = incarnation
        self._slice_seconds = slice_seconds
        self._inbox_max_bytes = inbox_max_bytes
        self._inbox: deque[tuple[str, Event]] = deque()
        # How many were taken out of it; those that were put in are counted by the channels.
        self._taken = 0
        # A large channel's fan-out that the last slice did not finish, and its name.
        self._begun: tuple[str, Iterator[None]] | None = None
        self._next: Timer | None = None
        self._is_paused = False
        self._is_stopped = False
        self._is_resting = False
        self._bytes_since_rest = REST_EVERY_BYTES

    @property
    def is_idle(self) -> bool:
        """Everything received has been handed to the outboxes."""
        return not self._inbox and self._begun is None

    def received(self, channel: str, event: Event) -> None:
        """See ``hub.api.Receiver``."""
        if self._is_stopped:
            return
        self._inbox.append((channel, event))
        self._channels.handed_over += 1
        self._counters.inbox_bytes += _size(event)

    def asked(self, question: bytes) -> Deferred[bytes]:
        """See ``hub.api.Receiver``."""
        return self._answer(question)

    def read_done(self) -> None:
        """See ``hub.api.Receiver``."""
        if not self._is_paused and self._counters.inbox_bytes > self._inbox_max_bytes:
            self._is_paused = True
            self._counters.inbox_pauses += 1
            self._hub.pause()
        if self._next is None and self._inbox:
            self._slice()

    def pressed(self, channel: str) -> None:
        """See ``hub.api.Receiver``."""
        self._pressure.heard(channel)

    def missed(self, seconds: float) -> None:
        """See ``hub.api.Receiver``."""
        self.log.warn(
            "the hub was out of hearing for {seconds:.3f} s; publications of that time may be missing",
            seconds=seconds,
        )

    def stop(self) -> None:
        """Deliver no more. Idempotent."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._is_stopped = True
        self._inbox.clear()
        self._counters.inbox_bytes = 0
        self._begun = None

    def _slice(self) -> None:
        self._next = None
        deadline = self._now() + self._slice_seconds
        # Sockets that the last slice did not get to come first; until then nothing is added to them. What is
        # written below leaves at the end of the turn, together with replies that are written in it: a member
        # that publishes gets both in one send, 4.3 sends for a publication in a room of four instead of 4.8.
        if not self._cork.is_late or self._cork.flush(deadline):
            self._deliver(deadline)
            if not self.is_idle:
                self._cork.flush(self._now() + self._slice_seconds)
        if self._is_paused and self._counters.inbox_bytes * 2 < self._inbox_max_bytes:
            self._is_paused = False
            self._hub.resume()
        if self._next is None and (self._is_resting or not self.is_idle):
            self._next = self._clock.callLater(REST_SECONDS if self._is_resting else 0, self._slice)
        self._is_resting = False

    def _deliver(self, deadline: float) -> None:
        if self._begun is not None and not self._go_on(*self._begun, deadline):
            return
        inbox = self._inbox
        counters = self._counters
        looks = 0
        while inbox:
            name, event = inbox.popleft()
            size = _size(event)
            counters.inbox_bytes -= size
            self._taken += 1
            channel = self._channels.get(name)
            if channel is None or self._taken <= channel.since:
                continue  # the last member had left; the subscription lingers, or somebody is back
            publisher = 0
            if type(event) is Publication and event.shard == self._incarnation:
                publisher = event.session
            self._bytes_since_rest += size - PUBLICATION_BYTES
            further: list[Publication] = []
            if (
                inbox
                and inbox[0][0] == name
                and type(event) is Publication
                and channel.takes_runs
                and not event.exclude
            ):
                further = self._run(name, publisher, size)
            try:
                begun = channel.fan_out(event, publisher, further, is_alone=not inbox)
            except Exception:
                self._defect(name)
                continue
            if self._cork.is_pressed:
                self._felt(name)
                if self._is_resting and begun is None:
                    return
            if begun is not None:
                if not self._go_on(name, begun, deadline):
                    return
            else:
                looks += 1
                if looks % PUBLICATIONS_PER_LOOK == 0 and self._now() > deadline:
                    return

    def _run(self, name: str, publisher: int, size: int) -> list[Publication]:
        """Take what follows in the same channel, of publishers that get as little or as much of it back."""
        inbox = self._inbox
        run: list[Publication] = []
        total = size
        while inbox and len(run) < RUN_MAX_PUBLICATIONS - 1 and total < RUN_MAX_BYTES:
            following, event = inbox[0]
            if following != name or type(event) is not Publication:
                break
            if (event.session if event.shard == self._incarnation else 0) != publisher or event.exclude:
                break
            inbox.popleft()
            run.append(event)
            total += _size(event)
        self._taken += len(run)
        self._counters.inbox_bytes -= total - size
        self._bytes_since_rest += total - size - len(run) * PUBLICATION_BYTES
        return run

    def _go_on(self, name: str, begun: Iterator[None], deadline: float) -> bool:
        """``True`` when this publication has reached all members, ``False`` when the time is over."""
        self._begun = None
        try:
            for _ in begun:
                if self._cork.is_pressed:
                    self._felt(name)
                if self._is_resting or self._now() > deadline:
                    self._begun = (name, begun)
                    return False
        except Exception:
            self._defect(name)
        return True

    def _defect(self, channel: str) -> None:
        # What is wrong with one event or one member must not stop all others of the shard.
        self.log.failure("fan-out in channel {channel}", channel=channel)

    def _felt(self, channel: str) -> None:
        """An outbox ran over half of its limit while this channel was served."""
        self._cork.is_pressed = False
        self._pressure.felt(channel)
        behind, self._cork.behind = self._cork.behind, []
        if behind and self._bytes_since_rest >= REST_EVERY_BYTES:
            # What is on its way when the publishers are slowed down can be megabytes. A receiver that does
            # read takes in as much during a rest; one that does not is waited for 40 times in all.
            self._is_resting = True
            self._bytes_since_rest = 0
            self._counters.rests += 1
            for outbox in behind:
                outbox.waited_for()


def _size(event: Event) -> int:
    """Bytes that an event costs while it waits."""
    return (len(event.data) if type(event) is Publication else 0) + PUBLICATION_BYTES
