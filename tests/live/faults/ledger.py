"""What publishers were told and what subscribers saw, and what does not agree. Pure: lines in, findings out.

Witnesses write one line for each thing that happens, with the time of CLOCK_MONOTONIC in seconds:

    P t publisher sequence                      about to publish
    A t publisher sequence [epoch offset]       acknowledged
    F t publisher sequence code                 failed: whether it was taken is not known
    R t publisher sequence code                 failed, and tried again with the same idempotency key
    C t who endpoint                            connected, to the endpoint of this number
    D t who code                                not connected any more
    S t subscriber recovering recovered epoch offset    subscribed: 0 or 1, 0 or 1, position
    U t subscriber code                         not subscribed any more
    M t subscriber offset publisher sequence    a publication

Lines of one witness come in order; those of different witnesses in any.

The judgement rests on positions. Within an epoch a subscriber must see each offset after the one at which it
began, in order. So all it has seen is a list of *stretches*, and each gap between them must have been told:
``recovered`` was 0 when it subscribed again. What was acknowledged must be in a stretch of every subscriber,
or in a gap that was told. Such a telling is accepted only where a fault has destroyed what the channel had
kept; elsewhere it is a finding too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["TOLD_SECONDS", "Finding", "Ledger", "Sent", "Subscriber"]

TOLD_SECONDS = 60.0
"""After a destruction, subscribers may be told of it for so long."""

RANGE_MAX = 100_000
"""A gap wider than this is told in one finding."""


@dataclass(frozen=True)
class Finding:
    """Something that must not be."""

    what: str
    """``lost``, ``doubled``, ``out of order``, ``invented``, ``told`` (without a cause), and what else the
    runner finds."""
    at: float
    """When, as far as it can be said."""
    who: str
    where: str
    details: str

    def __str__(self) -> str:
        return f"{self.what}: {self.who} in {self.where} at {self.at:.3f}: {self.details}"


@dataclass(slots=True, eq=False)
class Sent:
    """One publication."""

    publisher: str
    sequence: int
    sent_at: float = -1.0
    """Below 0: no publisher has said that it sends it."""
    acknowledged_at: float = math.inf
    is_failed: bool = False
    epoch: str = ""
    """With ``offset``: where subscribers saw it first, or where its publisher was told that it is."""
    offset: int = 0

    def __str__(self) -> str:
        where = f" at {self.epoch}:{self.offset}" if self.epoch else ""
        return f"{self.publisher}#{self.sequence}{where}"


@dataclass(slots=True)
class Stretch:
    """A subscriber has seen every offset above ``low`` up to ``high``."""

    epoch: str
    low: int
    high: int


@dataclass(slots=True)
class Gap:
    """From one position to another, not seen."""

    since: float
    at: float
    epoch: str
    low: int
    to_epoch: str
    high: int
    is_told: bool

    def covers(self, sent: Sent) -> bool:
        """That publication may be in it."""
        if not sent.epoch:
            return sent.sent_at <= self.at and sent.acknowledged_at >= self.since
        if sent.epoch == self.epoch:
            return sent.offset > self.low and (self.to_epoch != self.epoch or sent.offset <= self.high)
        if sent.epoch == self.to_epoch:
            return sent.offset <= self.high
        return sent.sent_at <= self.at


@dataclass(slots=True, eq=False)
class Subscriber:
    """One client in one channel."""

    who: str
    channel: str
    stretches: list[Stretch] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    missing: dict[tuple[str, int], float] = field(default_factory=dict)
    """Positions that were passed over while subscribed, and when."""
    began_at: float = math.inf
    seen_at: float = 0.0
    """When it last saw anything, a publication or a telling."""
    is_subscribed: bool = False
    endpoint: int = 0
    is_connected: bool = False
    deliveries: int = 0


@dataclass(slots=True)
class _Publisher:
    channel: str
    sent: dict[int, Sent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Destruction:
    since: float
    until: float
    channels: frozenset[str] | None

    def hits(self, channel: str) -> bool:
        return self.channels is None or channel in self.channels


class Ledger:
    """See the module. ``findings`` has what was seen to be wrong at once; ``verdict`` has all."""

    def __init__(self) -> None:
        self.subscribers: dict[str, Subscriber] = {}
        self.findings: list[Finding] = []
        self.told: Counter[str] = Counter()
        """What subscribers were told, by kind."""
        self.errors: Counter[str] = Counter()
        """What publishers were told instead of an acknowledgement, by code."""
        self.retries = 0
        self.acknowledged = 0
        self.deliveries = 0
        self.watched: dict[str, list[tuple[float, Sent]]] = {}
        """Deliveries to these subscribers are noted here, too; whoever asks for them empties it."""
        self._publishers: dict[str, _Publisher] = {}
        self._positions: dict[str, dict[str, dict[int, Sent]]] = {}
        self._destructions: list[_Destruction] = []
        # By channel, epoch and publication: where it is.
        self._offsets: dict[tuple[str, str, Sent], set[int]] = {}
        # By channel and epoch: the epochs whose offsets go on in it.
        self._copies: dict[str, dict[str, set[str]]] = {}

    # -- who takes part --------------------------------------------------------------------------------

    def subscriber(self, who: str, channel: str) -> Subscriber:
        """There will be lines of this subscriber."""
        self._positions.setdefault(channel, {})
        self.subscribers[who] = found = Subscriber(who, channel)
        return found

    def publisher(self, who: str, channel: str) -> None:
        """There will be lines of this publisher."""
        self._positions.setdefault(channel, {})
        self._publishers[who] = _Publisher(channel)

    def destroyed(self, channels: frozenset[str] | None, since: float, until: float) -> None:
        """What these channels had kept is gone: as of now it may be told.

        :param channels: ``None``: all.
        """
        self._destructions.append(_Destruction(since, until, channels))

    # -- lines -----------------------------------------------------------------------------------------

    def take(self, line: str) -> None:
        """One line of a witness.

        :raises ValueError: it is none; ``KeyError``: it is of nobody that takes part.
        """
        kind, time, who, *rest = line.split()
        at = float(time)
        if kind == "M":
            offset, publisher, sequence = rest
            self._saw(self.subscribers[who], at, int(offset), self._sent(publisher, int(sequence)))
        elif kind == "P":
            self._sent(who, int(rest[0])).sent_at = at
        elif kind == "A":
            self._acknowledged(at, self._sent(who, int(rest[0])), rest[1:])
        elif kind == "F":
            self._sent(who, int(rest[0])).is_failed = True
            self.errors[rest[1]] += 1
        elif kind == "R":
            self.retries += 1
            self.errors[rest[1]] += 1
        elif kind == "S":
            recovering, recovered, epoch, offset = rest
            subscriber = self.subscribers[who]
            self._subscribed(subscriber, at, recovering == "1", recovered == "1", epoch, int(offset))
        elif kind == "U":
            self.subscribers[who].is_subscribed = False
            if int(rest[0]) >= 2500:
                self.told[f"unsubscribed {rest[0]}"] += 1
        elif kind in ("C", "D"):
            self._connection(kind, who, int(rest[0]))
        else:
            raise ValueError(f"no such line: {line!r}")

    def _connection(self, kind: str, who: str, number: int) -> None:
        subscriber = self.subscribers.get(who)
        if subscriber is not None:
            subscriber.is_connected = kind == "C"
            if kind == "C":
                subscriber.endpoint = number
        if kind == "D" and number >= 3000:
            self.told[f"disconnected {number}"] += 1

    def _sent(self, publisher: str, sequence: int) -> Sent:
        # One that nobody has said to publish may come to be known later, or is invented.
        known = self._publishers.setdefault(publisher, _Publisher(""))
        found = known.sent.get(sequence)
        if found is None:
            found = known.sent[sequence] = Sent(publisher, sequence)
        return found

    def _acknowledged(self, at: float, sent: Sent, position: Sequence[str]) -> None:
        if sent.acknowledged_at == math.inf:
            self.acknowledged += 1
        sent.acknowledged_at = at
        if position:
            self._placed(self._publishers[sent.publisher].channel, at, sent, position[0], int(position[1]))

    def _placed(self, channel: str, at: float, sent: Sent, epoch: str, offset: int) -> None:
        """A publication is at that position: no other is, and it is at no other."""
        other = self._positions[channel].setdefault(epoch, {}).setdefault(offset, sent)
        self._offsets.setdefault((channel, epoch, sent), set()).add(offset)
        if other is not sent:
            self._found("out of order", at, "the hub", channel, f"{other} and {sent} at {epoch}:{offset}")
        elif not sent.epoch:
            sent.epoch, sent.offset = epoch, offset
        elif (
            (sent.epoch, sent.offset) != (epoch, offset)
            and not (sent.offset == offset and self._are_copies(channel, sent.epoch, epoch))
            and (sent.epoch == epoch or not self._may_tell(channel, at))
        ):
            self._found("doubled", at, "the hub", channel, f"{sent} is at {epoch}:{offset}, too")

    def _saw(self, subscriber: Subscriber, at: float, offset: int, sent: Sent) -> None:
        self.deliveries += 1
        subscriber.deliveries += 1
        channel = subscriber.channel
        subscriber.seen_at = at
        if not subscriber.stretches:
            self._found("out of order", at, subscriber.who, channel, f"{sent} before it was subscribed")
            return
        last = subscriber.stretches[-1]
        if offset == last.high + 1:
            last.high = offset
        elif offset > last.high:
            for hole in range(last.high + 1, min(offset, last.high + RANGE_MAX)):
                subscriber.missing[last.epoch, hole] = at
            subscriber.stretches.append(Stretch(last.epoch, offset - 1, offset))
        elif subscriber.missing.pop((last.epoch, offset), None) is not None:
            subscriber.stretches.insert(-1, Stretch(last.epoch, offset - 1, offset))
            self._found(
                "out of order",
                at,
                subscriber.who,
                channel,
                f"{sent} as {offset} after {last.high} of {last.epoch}",
            )
        else:
            known = self._positions[channel].get(last.epoch, {}).get(offset)
            what = "doubled" if known is sent else "out of order"
            self._found(
                what, at, subscriber.who, channel, f"{sent} as {offset} after {last.high} of {last.epoch}"
            )
            return
        self._placed(channel, at, sent, last.epoch, offset)
        if (watched := self.watched.get(subscriber.who)) is not None:
            watched.append((at, sent))

    def _subscribed(
        self, subscriber: Subscriber, at: float, recovering: bool, recovered: bool, epoch: str, offset: int
    ) -> None:
        since, subscriber.seen_at, subscriber.is_subscribed = subscriber.seen_at, at, True
        if not subscriber.stretches:
            subscriber.began_at = at
            subscriber.stretches.append(Stretch(epoch, offset, offset))
            return
        last = subscriber.stretches[-1]
        if recovered:
            if epoch != last.epoch and offset == last.high and self._may_tell(subscriber.channel, at):
                # A replica has taken over, and goes on with the offsets: what was seen here was seen there.
                self._copies.setdefault(subscriber.channel, {}).setdefault(epoch, set()).add(last.epoch)
                seen = [each for each in subscriber.stretches if each.epoch == last.epoch]
                subscriber.stretches += [Stretch(epoch, each.low, each.high) for each in seen]
                self.told["recovered in a copy"] += 1
            elif epoch != last.epoch:
                self._found(
                    "lost", at, subscriber.who, subscriber.channel,
                    f"recovered from {last.epoch}:{last.high} in another epoch, {epoch}:{offset}",
                )  # fmt: skip
                subscriber.stretches.append(Stretch(epoch, offset, offset))
            return
        subscriber.gaps.append(Gap(since, at, last.epoch, last.high, epoch, offset, recovering))
        subscriber.stretches.append(Stretch(epoch, offset, offset))
        if recovering:
            self.told["recovered=false"] += 1
            if not self._may_tell(subscriber.channel, at):
                self._found(
                    "told", at, subscriber.who, subscriber.channel,
                    f"not recovered from {last.epoch}:{last.high}, now at {epoch}:{offset}",
                )  # fmt: skip

    def _are_copies(self, channel: str, one: str, other: str) -> bool:
        copies = self._copies.get(channel, {})
        return one in copies.get(other, ()) or other in copies.get(one, ())

    def _has_elsewhere(self, subscriber: Subscriber, sent: Sent) -> bool:
        """It has seen it in another epoch.

        In a copy that has taken over; or published again there, by whoever was not acknowledged before.
        """
        positions = self._positions[subscriber.channel]
        return any(
            each.low < offset <= each.high and positions[each.epoch].get(offset) is sent
            for each in subscriber.stretches
            for offset in self._offsets.get((subscriber.channel, each.epoch, sent), ())
        )

    def _may_tell(self, channel: str, at: float) -> bool:
        return any(
            each.hits(channel) and each.since <= at <= each.until + TOLD_SECONDS
            for each in self._destructions
        )

    def _found(self, what: str, at: float, who: str, where: str, details: str) -> None:
        self.findings.append(Finding(what, at, who, where, details))

    # -- the end ---------------------------------------------------------------------------------------

    @property
    def known_failures(self) -> int:
        """Publications of which it is not known whether they were taken."""
        return sum(
            sent.is_failed and sent.acknowledged_at == math.inf
            for each in self._publishers.values()
            for sent in each.sent.values()
        )

    def missing(self) -> Iterator[Finding]:
        """Acknowledged publications that a subscriber should have seen, and was not told of."""
        channels: dict[str, list[Subscriber]] = {}
        for subscriber in self.subscribers.values():
            channels.setdefault(subscriber.channel, []).append(subscriber)
        for publisher in self._publishers.values():
            for sent in publisher.sent.values():
                if sent.acknowledged_at == math.inf or sent.epoch:
                    continue
                for subscriber in channels.get(publisher.channel, ()):
                    if sent.acknowledged_at >= subscriber.began_at and not _is_excused(subscriber, sent):
                        yield _lost(subscriber, sent, "which nobody has seen")
        for subscriber in self.subscribers.values():
            for epoch, kept in self._positions[subscriber.channel].items():
                for sent in _uncovered(subscriber, epoch, kept):
                    if sent.acknowledged_at == math.inf or _is_excused(subscriber, sent):
                        continue
                    if self._has_elsewhere(subscriber, sent):
                        continue
                    if sent.acknowledged_at >= subscriber.began_at and not _is_before(subscriber, sent):
                        yield _lost(subscriber, sent, f"acknowledged at {sent.acknowledged_at:.3f}")

    def behind(self) -> int:
        """How many subscribers do not have all that was acknowledged, so far, or are not subscribed."""
        waiting = {finding.who for finding in self.missing()}
        waiting |= {who for who, each in self.subscribers.items() if not each.is_subscribed}
        return len(waiting)

    def verdict(self) -> list[Finding]:
        """All that is wrong, in the order of time; to be asked when subscribers have caught up."""
        found = [*self.findings, *self.missing(), *self._passed_over(), *self._invented(), *self._overtaken()]
        found += [
            Finding("lost", each.seen_at, each.who, each.channel, "not subscribed in the end")
            for each in self.subscribers.values()
            if not each.is_subscribed
        ]
        return sorted(found, key=lambda finding: finding.at)

    def _passed_over(self) -> Iterator[Finding]:
        # What was acknowledged is told by ``missing``; what was not must not be passed over either.
        for subscriber in self.subscribers.values():
            kept = self._positions[subscriber.channel]
            for (epoch, offset), at in subscriber.missing.items():
                sent = kept.get(epoch, {}).get(offset)
                if sent is None or sent.acknowledged_at == math.inf:
                    details = f"passed over {epoch}:{offset}, {sent or 'which nobody has seen'}"
                    yield Finding("lost", at, subscriber.who, subscriber.channel, details)

    def _invented(self) -> Iterator[Finding]:
        for name, publisher in self._publishers.items():
            for sent in publisher.sent.values():
                if sent.sent_at < 0:
                    yield Finding("invented", 0.0, name, publisher.channel or "?", f"{sent} was never sent")

    def _overtaken(self) -> Iterator[Finding]:
        """A publisher waits for each reply: what was acknowledged has the order of its sequences."""
        for channel, epochs in self._positions.items():
            for kept in epochs.values():
                last: dict[str, Sent] = {}
                for offset in sorted(kept):
                    sent = kept[offset]
                    if sent.acknowledged_at == math.inf:
                        continue
                    before = last.setdefault(sent.publisher, sent)
                    if before.sequence > sent.sequence:
                        yield Finding(
                            "out of order",
                            sent.acknowledged_at,
                            sent.publisher,
                            channel,
                            f"{sent} behind {before}",
                        )
                    last[sent.publisher] = sent


def _uncovered(subscriber: Subscriber, epoch: str, kept: dict[int, Sent]) -> Iterator[Sent]:
    """What is in none of its stretches of that epoch."""
    stretches = sorted(
        ((each.low, each.high) for each in subscriber.stretches if each.epoch == epoch), key=lambda s: s[0]
    )
    top = max(kept, default=0)
    reached = 0
    for low, high in [*stretches, (top, top)]:
        for offset in range(reached + 1, low + 1):
            if offset in kept:
                yield kept[offset]
        reached = max(reached, high)


def _is_excused(subscriber: Subscriber, sent: Sent) -> bool:
    return any(gap.is_told and gap.covers(sent) for gap in subscriber.gaps)


def _is_before(subscriber: Subscriber, sent: Sent) -> bool:
    """It was there when the subscriber came."""
    first = subscriber.stretches[0]
    return sent.epoch == first.epoch and sent.offset <= first.low


def _lost(subscriber: Subscriber, sent: Sent, details: str) -> Finding:
    return Finding("lost", sent.sent_at, subscriber.who, subscriber.channel, f"{sent}, {details}")
