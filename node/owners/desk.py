"""Who is in the channels that this shard looks after, as all shards have reported it, and what follows.

The shard that is responsible for a channel owns it while somebody is in there, or the app has called it, and
for ``linger_seconds`` more; and it tells the app that it is occupied, or vacated. Its deputy keeps the same
books and does nothing with them, until the first has gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from spread.hub.api import Ownership
from spread.hub.reactor import Timer
from spread.node import codes
from spread.node.owners.holding import Holding, State, not_here
from spread.node.owners.owned import Shape
from spread.node.owners.places import Places
from spread.node.owners.running import refused
from spread.node.owners.surroundings import Surroundings
from spread.node.owners.wire import Call, Outcome, Report, Reported, Row
from spread.node.pattern import matching

__all__ = ["DOUBT_SECONDS", "Desk", "Shapes"]

DOUBT_SECONDS = 2.0
"""After a gap: what was reported before, and is not reported again within this time, is true no more.

So is what was reported of a channel that has belonged elsewhere for so long: nobody tells its news here.
"""

LOST_SECONDS = 0.2
"""After this time a channel that another has taken is taken back, if it still belongs here."""

BROKEN_SECONDS = 1.0
"""After this time an object that could not be made is made again."""

log = Logger("spread.node.owners")


class Shapes:
    """The classes of an app, by the channels they are for."""

    def __init__(self, shapes: Iterable[Shape] = ()) -> None:
        self.all = list(shapes)
        self._matching = [(matching(pattern), shape) for shape in self.all for pattern in shape.cls.patterns]

    @property
    def patterns(self) -> frozenset[str]:
        """Of the channels of all."""
        return frozenset(pattern for shape in self.all for pattern in shape.cls.patterns)

    def of(self, channel: str) -> Shape | None:
        """The first that is for this channel."""
        return next((shape for fits, shape in self._matching if fits(channel)), None)


class _Entry:
    """One channel."""

    __slots__ = (
        "again",
        "coming",
        "doubted",
        "holding",
        "is_called",
        "is_occupied",
        "is_stale",
        "known",
        "linger",
        "shards",
        "was_broken",
    )

    def __init__(self) -> None:
        self.shards: dict[str, dict[str, Row]] = {}
        """Who is in there, by shard and id."""
        self.coming: dict[str, dict[str, Row]] = {}
        """By shard, what has come of a report that is told in parts."""
        self.is_stale = False
        """The channel belongs elsewhere: of what was reported nobody tells whether it still is so."""
        self.doubted: set[str] = set()
        """Shards whose report is from before a gap."""
        self.is_occupied = False
        """The app was told so."""
        self.is_called = False
        """The app has called a command; so there is an object, though nobody may be in there."""
        self.was_broken = False
        self.known: Ownership | None = None
        """The last that this shard had of the channel."""
        self.holding: Holding | None = None
        self.linger: Timer | None = None
        self.again: Timer | None = None


class Desk:
    """See the top of this module.

    :param knows: whether a shard is known to live.
    :param anew: asks some shards for all that they have to report.
    """

    def __init__(
        self,
        around: Surroundings,
        places: Places,
        knows: Callable[[str], bool],
        anew: Callable[[set[str]], None],
    ) -> None:
        self.shapes = Shapes()
        self._around = around
        self._places = places
        self._knows = knows
        self._anew = anew
        self._entries: dict[str, _Entry] = {}
        self._doubt: Timer | None = None
        self._is_stopped = False

    @property
    def holdings(self) -> list[Holding]:
        """Channels that this shard owns, begins to, or gives up."""
        return [entry.holding for entry in self._entries.values() if entry.holding is not None]

    @property
    def _is_full(self) -> bool:
        return self._around.counters.objects >= self._around.limits.max_objects

    # -- what others say ---------------------------------------------------------------------------------

    def report(self, origin: str, report: Report) -> Reported:
        """Take a report of a shard."""
        refused_channels: list[str] = []
        counters = self._around.counters
        for each in report.channels:
            channel = each.channel
            entry = self._entries.get(channel)
            rows = None if entry is None else entry.shards.get(origin)
            base = {} if each.is_full else rows if entry is None else entry.coming.get(origin, rows)
            had = 0 if rows is None else len(rows)
            more = len(base or ()) + len(each.joined) - len(each.left) - had
            is_full = more > 0 and counters.members + more > self._around.limits.max_reported_members
            counters.refused_full += is_full
            # A difference to what is not known here says nothing.
            if self._is_strange(origin, channel) or is_full or base is None:
                refused_channels.append(channel)
                if entry is not None:
                    entry.coming.pop(origin, None)
                continue
            if entry is None:
                entry = self._entries[channel] = _Entry()
            for id in each.left:
                base.pop(id, None)
            for row in each.joined:
                base[row.id] = row
            if each.is_more:
                entry.coming[origin] = base
                continue
            entry.coming.pop(origin, None)
            counters.members += len(base) - had
            entry.doubted.discard(origin)
            if base:
                entry.shards[origin] = base
            else:
                entry.shards.pop(origin, None)
            self._look(channel)
        return Reported(refused_channels)

    def _is_strange(self, origin: str, channel: str) -> bool:
        return (
            self._is_stopped
            or not self._knows(origin)
            or self._around.shard not in self._places.of(channel).ranked
        )

    def drop(self, shard: str) -> None:
        """It has gone, and all who were there."""
        for channel, entry in list(self._entries.items()):
            if shard in entry.shards or shard in entry.coming:
                entry.coming.pop(shard, None)
                self._drop(entry, shard)
                self._look(channel)

    def _drop(self, entry: _Entry, shard: str) -> None:
        self._around.counters.members -= len(entry.shards.pop(shard, ()))
        entry.doubted.discard(shard)

    def doubt(self) -> None:
        """There was a gap: what others have reported may have changed since."""
        for entry in self._entries.values():
            entry.doubted = entry.shards.keys() - {self._around.shard}
        self._settle_later()

    def _settle_later(self) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
        self._doubt = self._around.clock.callLater(DOUBT_SECONDS, self._settle)

    def _settle(self) -> None:
        self._doubt = None
        for channel, entry in list(self._entries.items()):
            if entry.is_stale:
                entry.coming.clear()
            for shard in list(entry.shards) if entry.is_stale else list(entry.doubted):
                self._drop(entry, shard)
            self._look(channel)

    def release(self, channel: str) -> Deferred[bool] | bool:
        """Another shard is to own it. ``True``: this one has nothing to do with it."""
        entry = self._entries.get(channel)
        if entry is None or entry.holding is None:
            return True
        if self._places.of(channel).first == self._around.shard and not self._is_stopped:
            return False
        entry.holding.hand_over()
        return entry.holding.when_over().addCallback(lambda _: True)

    def call(self, origin: str, call: Call) -> Outcome | Deferred[Outcome]:
        """Do a command, or say why not."""
        place = self._places.of(call.channel)
        if not place.is_owned or place.first != self._around.shard or self._is_stopped:
            return not_here(call.number)
        entry = self._entries.get(call.channel)
        if call.member is not None:
            # Whoever calls sees to it that the member was reported; so places have changed since.
            if entry is None or call.member.id not in entry.shards.get(origin, ()):
                return not_here(call.number)
        else:
            if entry is None:
                if self._is_full:  # what the app calls may be made up by a client: it is not to wait for room
                    self._around.counters.refused_full += 1
                    return refused(call.number, codes.LIMIT_EXCEEDED)
                entry = self._entries[call.channel] = _Entry()
            entry.is_called = True
            if entry.linger is not None:  # it begins anew
                entry.linger.cancel()
                entry.linger = None
                self._look(call.channel)
        if entry.holding is None:
            self._look(call.channel)
        if entry.holding is not None:
            return entry.holding.call(call)
        if entry.was_broken:
            return refused(call.number, codes.INTERNAL_ERROR)
        if self._is_full:
            return refused(call.number, codes.LIMIT_EXCEEDED)
        return not_here(call.number)

    # -- what follows ------------------------------------------------------------------------------------

    def review(self) -> None:
        """Channels may belong elsewhere, or the app has other classes."""
        again: set[str] = set()
        is_stale = False
        for channel, entry in list(self._entries.items()):
            if self._around.shard not in self._places.of(channel).ranked:
                is_stale = is_stale or not entry.is_stale
                entry.is_stale = True
            elif entry.is_stale:
                # Who has not noticed that it belonged elsewhere for a moment tells only what is new.
                entry.is_stale = False
                entry.doubted = set(entry.shards)
                again |= entry.shards.keys() | entry.coming.keys()
            self._look(channel)
        if again or is_stale:
            self._settle_later()
        if again:
            self._anew(again)

    def look(self) -> None:
        """This shard has had a gap, or is sure again."""
        for holding in self.holdings:
            holding.look()

    def _look(self, channel: str) -> None:
        """Let all be as it should be with one channel."""
        entry = self._entries.get(channel)
        if entry is None:
            return
        place = self._places.of(channel)
        is_first = place.first == self._around.shard and not self._is_stopped
        is_here = bool(entry.shards)
        if not is_first:
            entry.is_occupied = entry.is_called = False
        elif is_here != entry.is_occupied:
            entry.is_occupied = is_here
            self._around.host.tell("occupied" if is_here else "vacated", channel)
        shape = self.shapes.of(channel) if is_first and place.is_owned else None
        is_needed = shape is not None and (is_here or entry.is_called)
        if entry.holding is None:
            if is_needed and entry.again is None:
                self._hold(channel, entry)
        elif shape is None:
            entry.holding.hand_over()
        else:
            entry.holding.present()
        self._look_at_linger(channel, entry, shape, is_here)
        if self._is_over(entry):
            self._entries.pop(channel, None)

    def _is_over(self, entry: _Entry) -> bool:
        is_empty = not entry.shards and not entry.coming and not entry.is_called
        return is_empty and entry.holding is None and entry.again is None

    def _hold(self, channel: str, entry: _Entry) -> None:
        around = self._around
        if self._is_full:
            around.counters.refused_full += 1
            entry.again = around.clock.callLater(BROKEN_SECONDS, self._try_again, channel)
            return

        def rows() -> dict[str, tuple[Row, str]]:
            return {
                id: (row, shard) for shard, members in entry.shards.items() for id, row in members.items()
            }

        entry.holding = Holding(
            around,
            channel,
            lambda: self.shapes.of(channel),
            rows,
            lambda: self._over(channel, entry),
            entry.known,
        )
        entry.holding.begin()

    def _over(self, channel: str, entry: _Entry) -> None:
        holding, entry.holding = entry.holding, None
        if holding is None or self._is_stopped:
            return
        entry.was_broken = holding.is_broken
        entry.known = holding.known
        entry.is_called = False
        if entry.linger is not None:
            entry.linger.cancel()
            entry.linger = None
        if not holding.is_free and entry.again is None:
            seconds = BROKEN_SECONDS if holding.is_broken else LOST_SECONDS
            entry.again = self._around.clock.callLater(seconds, self._try_again, channel)
        if channel in self._entries:
            self._look(channel)

    def _try_again(self, channel: str) -> None:
        entry = self._entries[channel]
        entry.again = None
        entry.was_broken = False
        self._look(channel)

    def _look_at_linger(self, channel: str, entry: _Entry, shape: Shape | None, is_here: bool) -> None:
        if entry.holding is not None and shape is not None and not is_here:
            if entry.linger is None:
                seconds = shape.cls.linger_seconds
                entry.linger = self._around.clock.callLater(seconds, self._close, channel)
        elif entry.linger is not None:
            entry.linger.cancel()
            entry.linger = None

    def _close(self, channel: str) -> None:
        entry = self._entries[channel]
        entry.linger = None
        holding = entry.holding
        if holding is None:
            return
        if holding.state is State.OPEN:
            entry.is_called = False
            holding.close()
        elif holding.state is State.OPENING:
            entry.linger = self._around.clock.callLater(LOST_SECONDS, self._close, channel)

    # -- the end -----------------------------------------------------------------------------------------

    def when_empty(self) -> Deferred[None]:
        """Fires when all channels that are held now are so no more."""
        ends = DeferredList([holding.when_over() for holding in self.holdings])
        return ends.addCallback(lambda _: None)

    def stop(self) -> None:
        """Own nothing, take no reports. Idempotent."""
        self._is_stopped = True
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        for entry in self._entries.values():
            for timer in (entry.linger, entry.again):
                if timer is not None:
                    timer.cancel()
            entry.linger = entry.again = None
        for holding in self.holdings:
            holding.cut()
        self._entries.clear()
        self._around.counters.members = 0
