"""What the hub in memory keeps of its channels: streams, positions, results of idempotent publications.

The same rules as in ``lua/publish.lua`` and ``lua/history.lua``, in Python: a publication is numbered, kept,
trimmed to ``History.size``, and forgotten by the clock. Nothing here delivers anything.

No timers: what is out of time is taken away by the next call, whatever it is for, so that nothing is kept
for ever and nobody has to stop anything.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import islice

import msgspec

from spread.hub.api import Broken, Event, History, Position, Publication, PublishOptions, Stream
from spread.hub.epochs import drawn_epoch
from spread.hub.reactor import Clock

__all__ = ["RESULT_SECONDS", "Place", "Streams"]

RESULT_SECONDS = 300.0
"""How long the result of a publication with an idempotency key is remembered."""


class Place(msgspec.Struct):
    """How far a hub has handed over a channel it follows."""

    epoch: str
    offset: int


class _Kept:
    """Of one channel. Its stream is gone at ``stream_until``, all of it at ``until``."""

    __slots__ = ("entries", "epoch", "offset", "stream_until", "until", "version", "version_epoch")

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.offset = 0
        self.entries: deque[Publication] = deque()
        self.stream_until = 0.0
        self.until = 0.0
        self.version = 0
        self.version_epoch = ""

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.offset)


class Streams:
    """Of all channels of one exchange."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        # When to look at a channel again: one entry for each that is kept, never too late.
        self._due: list[tuple[float, str]] = []
        # In order of their end.
        self._results: dict[tuple[str, str], tuple[float, Position | None]] = {}

    def publish(
        self, channel: str, publication: Publication, options: PublishOptions
    ) -> tuple[Publication | None, Position | None]:
        """Number and keep a publication.

        :return: what subscribers are to get, ``None`` if it is not made; and its position.
        """
        now = self._forget_old()
        remembered = self._results.get((channel, options.idempotency_key))
        if remembered is not None:
            return None, remembered[1]
        position: Position | None = None
        made: Publication | None = publication
        if options.history is not None:
            made, position = self._append(channel, publication, options, options.history, now)
        if options.idempotency_key:
            self._results[channel, options.idempotency_key] = (now + RESULT_SECONDS, position)
        return made, position

    def has_result(self, channel: str, idempotency_key: str) -> bool:
        """One with this key was published."""
        self._forget_old()
        return (channel, idempotency_key) in self._results

    def position(self, channel: str, history: History) -> Position:
        """The top; the epoch comes into being if there is none."""
        now = self._forget_old()
        return self._used(channel, history, now).position

    def read(
        self, channel: str, history: History, since: Position | None, limit: int, reverse: bool
    ) -> Stream:
        """See ``api.Hub.history``."""
        now = self._forget_old()
        kept = self._used(channel, history, now)
        entries = list(kept.entries) if limit else []
        if reverse:
            entries.reverse()
        if since is not None:
            offset = since.offset
            entries = [
                each for each in entries if (each.offset < offset if reverse else each.offset > offset)
            ]
        return Stream(kept.position, entries if limit < 0 else entries[:limit])

    def remove(self, channel: str) -> None:
        """Forget the publications of a channel; epoch and offsets go on."""
        self._forget_old()
        kept = self._kept.get(channel)
        if kept is not None:
            kept.entries.clear()

    def flush(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._due.clear()
        self._results.clear()

    def since(self, channel: str, history: History, place: Place) -> list[Event]:
        """What comes after ``place``, in order; with ``Broken`` in front if it is not all there."""
        now = self._forget_old()
        kept = self._used(channel, history, now)
        if kept.epoch != place.epoch:
            first = kept.entries[0].offset if kept.entries else kept.offset + 1
            return [Broken(Position(kept.epoch, first - 1)), *kept.entries]
        if kept.offset <= place.offset:
            return []
        if not kept.entries or kept.entries[0].offset > place.offset + 1:
            first = kept.entries[0].offset if kept.entries else kept.offset + 1
            return [Broken(Position(kept.epoch, first - 1)), *kept.entries]
        return list(islice(kept.entries, place.offset + 1 - kept.entries[0].offset, None))

    # -- inside ----------------------------------------------------------------------------------------

    def _append(
        self, channel: str, publication: Publication, options: PublishOptions, history: History, now: float
    ) -> tuple[Publication | None, Position]:
        kept = self._used(channel, history, now)
        if options.version:
            if options.version_epoch == kept.version_epoch and options.version <= kept.version:
                return None, kept.position
            kept.version, kept.version_epoch = options.version, options.version_epoch
        kept.offset += 1
        made = msgspec.structs.replace(publication, offset=kept.offset, epoch=kept.epoch)
        kept.entries.append(made)
        while len(kept.entries) > history.size:
            kept.entries.popleft()
        kept.stream_until = now + history.ttl_seconds
        return made, kept.position

    def _used(self, channel: str, history: History, now: float) -> _Kept:
        kept = self._kept.get(channel)
        if kept is None or kept.until <= now:
            if kept is None:
                heappush(self._due, (now + min(history.ttl_seconds, history.meta_ttl_seconds), channel))
            kept = self._kept[channel] = _Kept(drawn_epoch().decode())
        elif kept.stream_until <= now:
            kept.entries.clear()
        kept.until = now + history.meta_ttl_seconds
        return kept

    def _forget_old(self) -> float:
        now = self._clock.seconds()
        while self._due and self._due[0][0] <= now:
            _, channel = heappop(self._due)
            kept = self._kept[channel]
            if kept.until <= now:
                del self._kept[channel]
                continue
            if kept.stream_until <= now:
                kept.entries.clear()
            heappush(self._due, (min(kept.until, kept.stream_until) if kept.entries else kept.until, channel))
        while self._results:
            key = next(iter(self._results))
            if self._results[key][0] > now:
                break
            del self._results[key]
        return now
