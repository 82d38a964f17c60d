"""Who is in the channels that somebody looks after: known here of this shard, told to who is responsible.

For each channel and each shard that is to know, this module remembers what that shard knows. What is missing
is sent as soon as nothing else is on its way there: all members if it knows nothing, else the difference. So
a slow shard gets fewer and larger reports, and one that failed is simply made up for by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.errors import HubError
from spread.hub.reactor import Clock, Timer
from spread.node.control import ControlFailed
from spread.node.owners.places import Places
from spread.node.owners.wire import ChannelReport, Report, Reported, Row

__all__ = ["Reports", "Tell"]

REPORT_MAX_BYTES = 256 << 10
"""Of one report; the rest is told with the next."""

AGAIN_SECONDS = 0.1
"""After this time what was refused or failed is told again."""

AGAIN_MAX_SECONDS = 2.0
"""The same after many times: a shard may have no room for more, and each try is a report in full."""

AGAIN_SOON = 5
"""So many times it is ``AGAIN_SECONDS``; then longer and longer."""

Tell = Callable[[str, Report], "Deferred[Reported]"]
"""Tells a shard, perhaps this one."""

log = Logger("spread.node.owners.reports")


class Reports:
    """See the line at the top.

    :param told: called when a shard has heard something new.
    """

    def __init__(
        self, clock: Clock, places: Places, tell: Tell, told: Callable[[], None] = lambda: None
    ) -> None:
        self.channels: dict[str, dict[str, Row]] = {}
        """Who is in which channel on this shard, by id; of channels that somebody looks after."""
        self._clock = clock
        self._places = places
        self._tell = tell
        self._when_told = told
        # What shards know: the ids of a channel's members, None if it is to be told all of them.
        self._known: dict[str, dict[str, set[str] | None]] = {}
        self._dirty: dict[str, dict[str, None]] = {}
        self._telling: set[str] = set()
        # Shards, and channels of which they have not been told everything yet.
        self._coming: set[tuple[str, str]] = set()
        # Shards that know nothing any more of what they are being told.
        self._void: set[str] = set()
        self._undone: dict[str, None] = {}
        self._tries = 0
        self._turn: Timer | None = None
        self._again: Timer | None = None
        self._is_stopped = False

    def knows(self, shard: str, channel: str, id: str) -> bool:
        """A shard has heard that there is this member in a channel, and it still is there."""
        known = self._known.get(channel, {}).get(shard)
        if known is None or (shard, channel) in self._coming:
            return False
        return id in known and id in self.channels.get(channel, ())

    # -- what happens here -------------------------------------------------------------------------------

    def joined(self, channel: str, row: Row) -> None:
        """A client of this shard has come into a channel."""
        if self._places.of(channel).ranked:
            self.channels.setdefault(channel, {})[row.id] = row
            self._mark(channel)

    def left(self, channel: str, id: str) -> None:
        """It has left. Idempotent."""
        rows = self.channels.get(channel)
        if rows is not None and rows.pop(id, None) is not None:
            if not rows:
                del self.channels[channel]
            self._mark(channel)

    def review(self, everybody: Callable[[], Iterable[tuple[str, Row]]] | None = None) -> None:
        """Channels may belong elsewhere.

        :param everybody: gives who is in which channel, whether or not it is looked after; given when other
            channels may be looked after than before.
        """
        if everybody is not None:
            self.channels = {}
            for channel, row in everybody():
                if self._places.of(channel).ranked:
                    self.channels.setdefault(channel, {})[row.id] = row
        self._tries = 0
        if self._again is not None:  # which may be long from now
            self._again.cancel()
            self._again = None
            self._retry_soon()
        for channel in self.channels.keys() | self._known.keys():
            self._mark(channel)

    def forget(self, shard: str) -> None:
        """It knows nothing: tell it all."""
        if shard in self._telling:
            self._void.add(shard)
        for known in self._known.values():
            if shard in known:
                known[shard] = None
        for channel in self.channels:
            self._mark(channel)

    def doubt(self, shard: str, channel: str) -> None:
        """It does not seem to know who is in a channel: tell it all of that."""
        known = self._known.get(channel, {})
        if known.get(shard) is not None:
            known[shard] = None
            self._mark(channel)

    def stop(self) -> None:
        """Tell nothing more."""
        self._is_stopped = True
        for timer in (self._turn, self._again):
            if timer is not None:
                timer.cancel()
        self._turn = self._again = None

    # -- telling -----------------------------------------------------------------------------------------

    def _mark(self, channel: str) -> None:
        known = self._known.setdefault(channel, {})
        ranked = self._places.of(channel).ranked
        for shard in [shard for shard in known if shard not in ranked]:
            del known[shard]
            self._coming.discard((shard, channel))
        rows = self.channels.get(channel, {})
        for shard in ranked:
            if shard not in known:
                if not rows:
                    continue  # it has heard nothing of this channel from here, and there is nothing to hear
                known[shard] = None
            knows = known[shard]
            if knows is None or knows != rows.keys() or (shard, channel) in self._coming:
                self._dirty.setdefault(shard, {})[channel] = None
        if not known:
            del self._known[channel]
        if self._dirty:
            self._soon()

    def _soon(self) -> None:
        if self._turn is None and not self._is_stopped:
            self._turn = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._turn = None
        for shard in [shard for shard in self._dirty if shard not in self._telling]:
            told = self._report(shard)
            if told:
                self._telling.add(shard)
                report = Report([each for each, _ in told])
                telling = maybeDeferred(self._tell, shard, report)
                telling.addCallbacks(self._told, self._not_told, (shard, told), {}, (shard, told))
                telling.addErrback(lambda failure: log.failure("reporting members", failure))

    def _report(self, shard: str) -> list[tuple[ChannelReport, set[str]]]:
        """What a shard is to be told, and what it knows then."""
        report: list[tuple[ChannelReport, set[str]]] = []
        room = REPORT_MAX_BYTES
        dirty = self._dirty.pop(shard)
        while dirty and room > 0:
            channel = next(iter(dirty))
            del dirty[channel]
            known = self._known.get(channel, {})
            if shard not in known:
                continue
            rows = self.channels.get(channel, {})
            knows = known[shard]
            had = set() if knows is None else knows
            left = [id for id in had if id not in rows]
            joined: list[Row] = []
            is_coming = knows is None or (shard, channel) in self._coming
            is_more = False
            room -= len(channel) + 16 + 40 * len(left)
            for id, row in rows.items():
                if id not in had:
                    if room <= 0:
                        dirty[channel] = None
                        is_more = is_coming
                        break
                    joined.append(row)
                    room -= len(id) + len(row.user) + len(row.info) + 8
            if is_coming or joined or left:
                has = (had | {row.id for row in joined}) - set(left)
                report.append((ChannelReport(channel, knows is None, joined, left, is_more), has))
        if dirty:
            self._dirty[shard] = dirty
        return report

    def _told(self, answer: Reported, shard: str, told: list[tuple[ChannelReport, set[str]]]) -> None:
        self._telling.discard(shard)
        refused = frozenset(answer.refused)
        is_void = shard in self._void
        self._void.discard(shard)
        for report, has in told:
            known = self._known.get(report.channel, {})
            self._coming.discard((shard, report.channel))
            if shard in known:
                known[shard] = None if is_void or report.channel in refused else has
                if report.is_more:
                    self._coming.add((shard, report.channel))
                elif report.channel not in self.channels and (not has or report.channel in refused):
                    del known[shard]  # nobody is there, and it knows, or need not
            if report.channel in refused:
                self._retry(report.channel)
            else:
                self._mark(report.channel)
        if not refused and not self._undone:
            self._tries = 0
        if self._dirty:
            self._soon()
        self._when_told()

    def _not_told(self, failure: Failure, shard: str, told: list[tuple[ChannelReport, set[str]]]) -> None:
        self._telling.discard(shard)
        self._void.discard(shard)
        if failure.check(HubError, ControlFailed, TimeoutError, CancelledError) is None:
            log.failure("telling {shard} who is in its channels", failure, shard=shard)
        for report, _ in told:
            known = self._known.get(report.channel, {})
            if shard in known:
                known[shard] = None  # it may have heard it or not
            self._retry(report.channel)

    def _retry(self, channel: str) -> None:
        self._undone[channel] = None
        self._retry_soon()

    def _retry_soon(self) -> None:
        if self._again is None and not self._is_stopped:
            seconds = AGAIN_SECONDS * 2 ** max(0, min(self._tries, 20) - AGAIN_SOON)
            self._tries += 1
            self._again = self._clock.callLater(min(seconds, AGAIN_MAX_SECONDS), self._once_more)

    def _once_more(self) -> None:
        self._again = None
        undone, self._undone = self._undone, {}
        for channel in undone:
            self._mark(channel)
