"""Channels that keep history, on their way from the subscriber link to the receiver: in order, no hole.

A channel that is subscribed with a history is *followed*:

    ======== ================================================ =======================================
    state    event                                            next
    ======== ================================================ =======================================
    AWAY     its SUBSCRIBE is confirmed                       WAITING
    WAITING  fewer than ``READS`` channels are being read     READING
    READING  read to the top, and what was held fits on it    LIVE
    READING  there is more; a read failed                     WAITING
    LIVE     a hole; nothing was heard for a while            WAITING
    any      the subscriber link is lost                      AWAY
    ======== ================================================ =======================================

LIVE hands over at once, offset n+1 only after n, and drops what it had. WAITING and READING hold what
is heard, within bounds; what finds no room is read again from the stream (plain publications, joins and
leaves are not in it: they are lost, as they may be). A read gives the stream's top and what is missing up
to it, in parts. Since it is sent after the SUBSCRIBE was confirmed, whatever is above the top it gives
will be heard: so nothing is lost between the two, and nothing is handed over twice.

What cannot be had, because the stream has been trimmed, has another epoch or has gone back, is told as
``Broken``; what follows goes on from there.

After a reconnect every followed channel is read, ``READS`` at a time. A channel that was silent for
``check_seconds`` is read too, once a shard, since a lost last publication makes no hole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Broken, Event, History, HubCounters, Position, Publication, Receiver, Stream
from spread.hub.errors import HubError, HubRefused, HubUnavailable, LinkLost
from spread.hub.history import Histories
from spread.hub.reactor import Clock, Timer

__all__ = ["FollowState", "Follower", "Repair"]

READS = 16
"""Channels that are being read at the same time."""

PART = 100
"""Publications of one read."""

PART_BYTES = 1 << 20
"""Bytes after which a read gives no further one."""

HELD_MAX = 1000
"""Events held for one channel."""

HELD_MAX_BYTES = 1 << 20
"""Bytes held for one channel."""

ALL_HELD_MAX_BYTES = 32 << 20
"""Bytes held for all channels together."""

EVENT_BYTES = 200
"""What a held event counts for besides its data."""

LATER_SECONDS = 0.1
"""Pause after a read that the server did not answer."""

REFUSED_SECONDS = 1.0
"""The same after one that it refused."""


class FollowState(Enum):
    """See the table of the module."""

    AWAY = "away"
    WAITING = "waiting"
    READING = "reading"
    LIVE = "live"


_LIVE = FollowState.LIVE


class Follower:
    """One followed channel: where it stands, and what it holds."""

    __slots__ = (
        "_repair",
        "channel",
        "checked_at",
        "epoch",
        "filled_to",
        "held",
        "held_bytes",
        "history",
        "is_broken",
        "is_heard",
        "is_idle",
        "is_short",
        "key",
        "offset",
        "plain_to",
        "reads",
        "state",
    )

    def __init__(self, repair: Repair, channel: str, key: bytes, history: History) -> None:
        self._repair = repair
        self.channel = channel
        self.key = key
        self.history = history
        self.state = FollowState.AWAY
        self.epoch = ""  # "": where it begins is not known yet
        self.offset = 0  # of the last one handed over
        self.filled_to = 0  # up to here it came from the stream, and may still be heard
        self.plain_to = 0  # up to here it may still be heard by those who have no position
        self.is_broken = False  # what comes next does not follow from what was handed over
        self.is_short = False  # something found no room since the last read was sent
        self.is_idle = True  # nothing was heard since the last check
        self.is_heard = False  # it was subscribed before it was followed
        self.checked_at = 0.0
        self.reads = 0  # so that an answer that nobody waits for any more is known as one
        self.held: deque[Event] = deque()
        self.held_bytes = 0

    @property
    def position(self) -> Position:
        """Of the last one handed over."""
        return Position(self.epoch, self.offset)

    def moved_to(self, repair: Repair) -> None:
        """Another server's from now on."""
        self._repair = repair

    def heard(self, event: Event) -> None:
        """The message path: 0.1 µs."""
        self.is_idle = False
        repair = self._repair
        if self.state is not _LIVE:
            repair.hold(self, event)
            return
        if type(event) is Publication and event.offset:
            if event.offset == self.offset + 1 and event.epoch == self.epoch:
                self.offset = event.offset
            elif event.epoch == self.epoch and event.offset <= self.filled_to:
                if event.offset > self.plain_to:
                    repair.counters.duplicates += 1
                    return
            else:
                # Heard before, and not from the stream: the server has gone back, and counts anew.
                self.is_broken = event.epoch == self.epoch and event.offset <= self.offset
                repair.hold(self, event)
                repair.due(self)
                return
        repair.receiver.received(self.channel, event)


class Repair:
    """All followed channels of one link.

    :param check_seconds: a channel that was silent for so long is compared with its stream.
    """

    log = Logger("spread.hub.repair")

    def __init__(
        self,
        clock: Clock,
        histories: Histories,
        *,
        receiver: Receiver,
        counters: HubCounters,
        check_seconds: float = 40.0,
    ) -> None:
        self.receiver = receiver
        self.counters = counters
        self.became_live: Callable[[Follower], None] = lambda follower: None
        """Called each time a channel is in order up to its position."""
        self.refused: Callable[[Follower, HubRefused], None] = lambda follower, error: None
        """Called when a channel whose position was never known may not be read; it is not followed then."""
        self._clock = clock
        self._histories = histories
        self._check_seconds = check_seconds
        self._followers: dict[Follower, None] = {}  # in the order of their last checks
        self._due: dict[Follower, None] = {}
        self._reading = 0
        self._held_bytes = 0
        self._is_up = False
        self._is_paused = False
        self._later: Timer | None = None
        self._check_timer: Timer | None = None
        self._told_at = -3600.0

    # -- which channels --------------------------------------------------------------------------------

    def follow(self, channel: str, key: bytes, history: History) -> Follower:
        """Follow a channel from its top on, once it is confirmed."""
        follower = Follower(self, channel, key, history)
        self._add(follower)
        return follower

    def _add(self, follower: Follower) -> None:
        follower.checked_at = self._clock.seconds()
        self._followers[follower] = None
        self.counters.followed_channels += 1
        if self._check_timer is None:
            self._check_timer = self._clock.callLater(self._tick_seconds, self._check)

    def forget(self, follower: Follower) -> None:
        """Follow it no more."""
        self.put_away(follower)
        if follower in self._followers:
            del self._followers[follower]
            self.counters.followed_channels -= 1

    def release(self, follower: Follower) -> None:
        """Give it to the repair of another server, with its position."""
        self.forget(follower)

    def adopt(self, follower: Follower) -> None:
        """Follow, once it is confirmed, what another server has released."""
        follower.moved_to(self)
        self._add(follower)

    def confirmed(self, follower: Follower, is_heard: bool = False) -> None:
        """Its SUBSCRIBE is confirmed: all that comes from now on will be heard.

        :param is_heard: there are subscribers without a position, who get what is on its way.
        """
        follower.is_heard = is_heard
        self.due(follower)

    # -- the links -------------------------------------------------------------------------------------

    def link_down(self) -> None:
        """The subscriber link is lost."""
        for follower in self._followers:
            self.put_away(follower)

    def commands_up(self) -> None:
        """The command link can be used."""
        self._is_up = True
        self._next()

    def commands_down(self) -> None:
        """It cannot; what was being read has failed."""
        self._is_up = False

    def pause(self) -> None:
        """Read nothing until ``resume``."""
        self._is_paused = True

    def resume(self) -> None:
        """Go on."""
        self._is_paused = False
        self._next()

    def stop(self) -> None:
        """Cancel timers, hand over nothing any more. Idempotent."""
        for follower in list(self._followers):
            self.forget(follower)
        for timer in (self._later, self._check_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._later = self._check_timer = None
        self._is_up = False

    # -- holding ---------------------------------------------------------------------------------------

    def due(self, follower: Follower) -> None:
        """The channel is to be read; until then what is heard is held."""
        follower.state = FollowState.WAITING
        self._due[follower] = None
        self._next()

    def hold(self, follower: Follower, event: Event) -> None:
        """Keep an event until what comes before it is known."""
        size = EVENT_BYTES + (len(event.data) if isinstance(event, Publication) else 0)
        if (
            len(follower.held) >= HELD_MAX
            or follower.held_bytes + size > HELD_MAX_BYTES
            or self._held_bytes + size > ALL_HELD_MAX_BYTES
        ):
            follower.is_short = True
            return
        follower.held.append(event)
        follower.held_bytes += size
        self._held_bytes += size

    def _taken(self, follower: Follower) -> Event:
        event = follower.held.popleft()
        size = EVENT_BYTES + (len(event.data) if isinstance(event, Publication) else 0)
        follower.held_bytes -= size
        self._held_bytes -= size
        return event

    def put_away(self, follower: Follower) -> None:
        """It is heard no more; it keeps its position, from which on it is read when it is confirmed again."""
        follower.state = FollowState.AWAY
        follower.reads += 1
        self._due.pop(follower, None)
        self._held_bytes -= follower.held_bytes
        follower.held_bytes = 0
        follower.held.clear()
        follower.is_short = False

    # -- reading ---------------------------------------------------------------------------------------

    def _next(self) -> None:
        while (
            self._due
            and self._reading < READS
            and self._is_up
            and not self._is_paused
            and self._later is None
        ):
            follower = next(iter(self._due))
            del self._due[follower]
            self._read(follower)

    def _read(self, follower: Follower) -> None:
        follower.state = FollowState.READING
        follower.is_short = False
        follower.reads += 1
        self._reading += 1
        number = follower.reads
        is_begun = bool(follower.epoch)
        reading = Deferred.fromCoroutine(
            self._histories.read(
                follower.channel,
                follower.history,
                since=follower.offset if is_begun else None,
                limit=PART if is_begun else 0,
                max_bytes=PART_BYTES,
                seen=follower.position if is_begun else None,
            )
        )
        reading.addCallbacks(
            self._was_read,
            self._was_not_read,
            callbackArgs=(follower, number),
            errbackArgs=(follower, number),
        )
        reading.addErrback(lambda failure: self.log.failure("repairing a channel", failure))

    def _was_read(self, stream: Stream, follower: Follower, number: int) -> None:
        self._reading -= 1
        if number == follower.reads and follower.state is FollowState.READING:
            self._fill(follower, stream)
        self._next()

    def _was_not_read(self, failure: Failure, follower: Follower, number: int) -> None:
        self._reading -= 1
        error = failure.value
        if isinstance(error, LinkLost):
            self._is_up = False  # until another connection is
        if number == follower.reads and follower.state is FollowState.READING:
            if isinstance(error, HubRefused) and not follower.epoch:
                self._give_up(follower, error)
            else:
                follower.state = FollowState.WAITING
                self._due[follower] = None
                if not isinstance(error, LinkLost):
                    self._pause_after(failure)
        self._next()

    def _pause_after(self, failure: Failure) -> None:
        now = self._clock.seconds()
        if now - self._told_at >= 60.0:
            self._told_at = now
            if failure.check(HubError):
                self.log.warn("the history of a channel cannot be read: {why}", why=failure.getErrorMessage())
            else:
                self.log.failure("the history of a channel cannot be read", failure)
        if self._later is None:
            seconds = LATER_SECONDS if failure.check(HubUnavailable) else REFUSED_SECONDS
            self._later = self._clock.callLater(seconds, self._ask_again)

    def _ask_again(self) -> None:
        self._later = None
        self._next()

    def _give_up(self, follower: Follower, error: HubRefused) -> None:
        while follower.held:
            self.receiver.received(follower.channel, self._taken(follower))
        self.forget(follower)
        self.refused(follower, error)

    # -- filling ---------------------------------------------------------------------------------------

    def _fill(self, follower: Follower, stream: Stream) -> None:
        top = stream.position
        if not follower.epoch:
            follower.epoch, follower.offset = top.epoch, top.offset
            follower.filled_to = top.offset
            follower.plain_to = top.offset if follower.is_heard else 0
        elif top.epoch != follower.epoch:
            ancestor = stream.before.get(follower.epoch)
            follower.epoch = top.epoch
            follower.is_broken = True
            if ancestor is None or ancestor.offset < follower.offset:
                # Another stream: from its beginning, or where it branches off: not what was asked for.
                follower.offset = follower.filled_to = ancestor.offset if ancestor is not None else 0
                self.due(follower)
                return
            # A copy of the same one: nothing is missing here, but clients have to learn the epoch.
            self._hand_over_missing(follower, stream)
        else:
            self._hand_over_missing(follower, stream)
        if follower.offset < top.offset or not self._hand_over_held(follower) or follower.is_short:
            self.due(follower)
        else:
            follower.state = _LIVE
            self.became_live(follower)
        self.receiver.read_done()

    def _hand_over_missing(self, follower: Follower, stream: Stream) -> None:
        publications, top = stream.publications, stream.position
        first = publications[0].offset if publications else top.offset + 1
        if follower.is_broken or first != follower.offset + 1:
            follower.is_broken = False
            follower.offset = first - 1
            self.counters.broken += 1
            self.receiver.received(follower.channel, Broken(follower.position))
        for publication in publications:
            if publication.offset != follower.offset + 1:
                break  # unreadable ones were left out: the next read begins with what comes after them
            self._hand_over_held_before(follower, publication.offset)
            follower.offset = publication.offset
            self.counters.repaired += 1
            self.receiver.received(follower.channel, publication)
        follower.filled_to = max(follower.filled_to, follower.offset)

    def _hand_over_held_before(self, follower: Follower, offset: int) -> None:
        """What has no offset keeps its place between those that have one."""
        while True:
            epoch = follower.epoch
            place = next((_offset(event, epoch) for event in follower.held if _offset(event, epoch)), 0)
            if not 0 < place <= offset:
                return
            while not _offset(event := self._taken(follower), epoch):
                if not (isinstance(event, Publication) and event.offset):
                    self.receiver.received(follower.channel, event)

    def _hand_over_held(self, follower: Follower) -> bool:
        """All that is held, if it fits."""
        while follower.held:
            event = follower.held[0]
            if isinstance(event, Publication) and event.offset:
                if event.epoch != follower.epoch:
                    # Of the stream before, or of one that came into being since: the next read will tell.
                    while follower.held and _offset(follower.held[0], event.epoch):
                        self._taken(follower)
                    return False
                if event.offset > follower.offset + 1:
                    return False
                if event.offset <= follower.offset:
                    self._taken(follower)
                    if event.offset <= follower.plain_to:
                        self.receiver.received(follower.channel, event)
                    continue
                follower.offset = event.offset
            self.receiver.received(follower.channel, self._taken(follower))
        return True

    # -- checking --------------------------------------------------------------------------------------

    @property
    def _tick_seconds(self) -> float:
        return min(1.0, self._check_seconds / 4)

    def _check(self) -> None:
        self._check_timer = None
        now = self._clock.seconds()
        for follower in list(self._followers):
            if follower.checked_at + self._check_seconds > now:
                break
            del self._followers[follower]
            self._followers[follower] = None
            follower.checked_at = now
            if follower.is_idle and follower.state is _LIVE:
                self.due(follower)
            follower.is_idle = True
        if self._followers:
            self._check_timer = self._clock.callLater(self._tick_seconds, self._check)


def _offset(event: Event, epoch: str) -> int:
    return event.offset if isinstance(event, Publication) and event.epoch == epoch else 0
