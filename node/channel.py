"""One channel on this shard: who is in it, and how an event reaches them.

An event is encoded once for each encoder that has members, framed once for each of their codecs, and the
same bytes go to all of them. A large channel is served in pieces, so that the shard can look after others
in between; who is a member is settled when the fan-out of that event begins, and who leaves meanwhile gets
no more of it.

A channel that keeps history has a position: that of the last publication which was fanned out. The hub
hands over without gaps, so this one position is that of every member. Who becomes a member gets all that
comes after the position of that moment.

Where the app has views (``node/lens.py``), members are told apart by them first, and it is asked once for
each what that gets. A publication that excludes clients, or has views or a key, goes its own way: ``_apart``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

from spread.hub.api import Broken, Event, History, Position, Publication
from spread.node.codec import Codec, Encoder
from spread.node.codec import Event as CodecEvent
from spread.node.member import Groups, Member, ViewGroups, grouped, grouped_by_view
from spread.node.metrics import ShardCounters
from spread.node.outbox import Outbox
from spread.node.recovery import Collector
from spread.node.views import Sight

__all__ = ["Channel"]

MEMBERS_PER_STEP = 512
"""Members served between two looks at the clock: 512 appends are 0.05–0.1 ms."""

SENDS_PER_STEP = 64
"""The same where each is served with a ``send`` of its own: 64 are 0.2 ms."""

SHARED_MAX = 64
"""What so many views get of one publication is kept, so that others which get the same share its encoding.
Bounded, since there may be as many views as members."""


class Channel:
    """One channel on this shard."""

    __slots__ = (
        "_by_client",
        "_collectors",
        "_counters",
        "_delta_members",
        "_fresh",
        "_gone",
        "_groups",
        "_listeners",
        "_view_groups",
        "history",
        "is_live",
        "joining",
        "members",
        "name",
        "position",
        "previous",
        "sight",
        "since",
    )

    def __init__(
        self, name: str, history: History | None, counters: ShardCounters, sight: Sight | None = None
    ) -> None:
        self.name = name
        self.history = history
        """What it keeps; set when it came into being here."""
        self.members: dict[int, Member] = {}
        self.joining = 0
        """Sessions that wait for the subscription before they become members."""
        self.is_live = False
        """The hub has confirmed that the channel is heard."""
        self.since: float = math.inf
        """``Channels.handed_over`` of the moment in which that was: what had been handed over by then, and
        waits to be fanned out, is for a channel of the same name that is no more."""
        self.position: Position | None = None
        """Of the last publication fanned out; None without history."""
        self.previous: Publication | None = None
        """The last publication, kept while a member has negotiated delta compression."""
        self.sight = sight
        """What the app makes of its publications; ``None``: it does not look at them. Set with ``look``."""
        self._counters = counters
        # Outboxes by codec, of all members and of those that hear joins; made anew after a change.
        self._groups: Groups | None = None
        self._listeners: Groups | None = None
        # The same by view, and by the client's id; made when they are needed.
        self._view_groups: ViewGroups | None = None
        self._by_client: dict[str, Outbox] | None = None
        # Members that get one publication in full before delta compression begins.
        self._fresh: dict[Member, None] = {}
        self._delta_members = 0
        self._collectors: dict[Collector, None] = {}
        # The outboxes of those who left while a fan-out in pieces is on; it holds them, so an id is not used
        # again.
        self._gone: set[int] | None = None

    # -- members ---------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Make a member of someone: it gets what comes after ``position``."""
        self.members[member.number] = member
        self._forget_groups()
        if member.codec.is_delta:
            self._delta_members += 1
            if member.codec.then is not None:
                self._fresh[member] = None

    def add_with_base(self, member: Member, base: Publication) -> None:
        """The same for one with delta compression that was given ``base``, the one at ``position``."""
        self.add(member)
        # One that excluded somebody is no base for all.
        if not base.exclude and self.position is not None and base.offset == self.position.offset:
            self.previous = base
            self._fresh.pop(member, None)
            self._goes_on(member)

    def remove(self, member: Member) -> bool:
        """Take a member out; ``False`` if it was none."""
        if self.members.get(member.number) is not member:
            return False
        del self.members[member.number]
        self._forget_groups()
        if self._gone is not None:
            self._gone.add(id(member.outbox))
        if member.codec.is_delta:
            self._delta_members -= 1
            self._fresh.pop(member, None)
            if not self._delta_members:
                self.previous = None
        return True

    def groups(self) -> Groups:
        """The members' outboxes, by codec."""
        if self._groups is None:
            self._groups = grouped(self.members.values())
        return self._groups

    def listeners(self) -> Groups:
        """The outboxes of members that hear joins and leaves, by codec."""
        if self._listeners is None:
            self._listeners = grouped(member for member in self.members.values() if member.hears_joins)
        return self._listeners

    def _forget_groups(self) -> None:
        self._groups = self._listeners = self._view_groups = self._by_client = None

    def _goes_on(self, member: Member) -> None:
        if member.codec.then is not None:
            member.codec = member.codec.then

    # -- views -------------------------------------------------------------------------------------------

    @property
    def takes_delta(self) -> bool:
        """Delta compression may be negotiated."""
        return self.sight is None

    def view_of(self, number: int) -> Hashable | None:
        """The view of a session that is about to become a member.

        :raises Exception: what the app raises: it cannot become one.
        """
        return None if self.sight is None else self.sight.view_of(number)

    def set_view(self, member: Member, view: Hashable | None) -> None:
        """Let a member see with another view what comes from now on.

        :raises TypeError: this is no key of a dictionary.
        """
        hash(view)
        member.view = view
        self._view_groups = None

    def look(self, sight: Sight | None) -> None:
        """The app is another one, or has another opinion. Views that members have stay what they are."""
        self.sight = sight
        self._view_groups = self.previous = None
        if sight is not None and sight.has_views:
            for member in self.members.values():
                if member.view is None:
                    member.view = sight.view_again(member.number)

    # -- collecting --------------------------------------------------------------------------------------

    def collect(self, limit: int) -> Collector:
        """Keep what is fanned out from now on, until ``stop_collecting``."""
        collector = Collector(limit)
        self._collectors[collector] = None
        return collector

    def stop_collecting(self, collector: Collector) -> None:
        """Idempotent."""
        self._collectors.pop(collector, None)

    # -- events --------------------------------------------------------------------------------------------

    def fan_out(
        self,
        event: Event,
        publisher: int,
        further: Sequence[Publication] = (),
        *,
        is_alone: bool = False,
    ) -> Iterator[None] | None:
        """Write an event to all members that it is for, but not to the publisher.

        :param publisher: number of the publishing session if it is one of this shard, else 0.
        :param further: publications of the same publisher that follow this one, if the channel ``takes_runs``
            and none of them excludes anybody: all of them are one write to
            each member, which makes 16 in a row cost 0.3 µs each instead of 0.5.
        :param is_alone: nothing else is to be delivered in this turn: members are sent it at once. Otherwise
            they are at the end of the turn, all in a row: that takes 10 % less than a send now and then.
        :returns: ``None`` when all is done; else an iterator that does a piece at each step.
        """
        kind = type(event)
        if kind is Publication:
            return self._publish(event, publisher, further, is_alone)  # type: ignore[arg-type]
        if kind is Broken:
            self._break(event.position)  # type: ignore[union-attr]
            return None
        return self._write((event,), self.listeners(), None, None, is_alone)  # type: ignore[arg-type]

    @property
    def takes_runs(self) -> bool:
        """Several publications may be given to ``fan_out`` at once."""
        return not self._delta_members and self.sight is None

    def _publish(
        self,
        publication: Publication,
        publisher: int,
        further: Sequence[Publication],
        is_alone: bool,
    ) -> Iterator[None] | None:
        publications: Sequence[Publication] = (publication, *further) if further else (publication,)
        if publication.offset:
            publications = self._goes_to(publications)
            if not publications:
                return None
        # getattr of a dict beats a scan; most publications come from another shard or a non-member.
        sender = self.members.get(publisher) if publisher else None
        skip = sender.outbox if sender is not None else None
        counters = self._counters
        count = len(publications)
        counters.spread += count
        counters.deliveries += count * (len(self.members) - (sender is not None))
        groups = self._groups or self.groups()  # without the call: 40 ns
        previous = self.previous
        if self._delta_members:
            self.previous = publication
            if self._fresh:
                fresh, self._fresh = self._fresh, {}
                for member in fresh:
                    self._goes_on(member)
                self._forget_groups()
        if publication.exclude or self.sight is not None:
            return self._apart(publication, groups, skip, previous, is_alone)
        return self._write(publications, groups, skip, previous, is_alone)

    def _apart(
        self,
        publication: Publication,
        groups: Groups,
        skip: Outbox | None,
        previous: Publication | None,
        is_alone: bool,
    ) -> Iterator[None] | None:
        """One that not all get, or not all alike, or that may replace an older one."""
        without = {id(outbox) for outbox in self._excluded(publication) if outbox is not skip}
        self._counters.deliveries -= len(without)
        has_excluded = bool(without)
        if skip is not None:
            without.add(id(skip))
        sight = self.sight
        if sight is None:
            if not has_excluded:
                return self._write((publication,), groups, skip, previous, is_alone)
            # Who did not get this one cannot be told the next as a difference to it.
            self.previous = None
            return self._in_portions(publication, [(None, groups)], without, previous)
        # Nor who is not shown it, or has it replaced by the next.
        self.previous = None
        if not sight.has_views:
            return self._in_portions(publication, [(None, groups)], without, None)
        if self._view_groups is None:
            self._view_groups = grouped_by_view(self.members.values())
        return self._in_portions(publication, self._view_groups, without, None)

    def _excluded(self, publication: Publication) -> list[Outbox]:
        if not publication.exclude:
            return []
        if self._by_client is None:
            self._by_client = {member.client: member.outbox for member in self.members.values()}
        by_client = self._by_client
        return [by_client[client] for client in publication.exclude if client and client in by_client]

    def _in_portions(
        self,
        publication: Publication,
        portions: ViewGroups,
        without: set[int],
        previous: Publication | None,
    ) -> Iterator[None]:
        """What ``_in_pieces`` does, view by view.

        :param without: ids of outboxes that do not get it; those who leave meanwhile are added.
        """
        sight = self.sight
        asks = sight is not None and sight.has_views
        key = sight.latest(publication) if sight is not None and sight.has_latest else None
        counters = self._counters
        # Views that get the same share its encoding.
        by_data: dict[bytes, dict[Encoder, list[bytes]]] = {}
        self._gone = without
        try:
            for view, groups in portions:
                seen = sight.see(view, publication) if asks and sight is not None else publication
                if seen is None:
                    counters.deliveries -= sum(
                        id(outbox) not in without for _, outboxes in groups for outbox in outboxes
                    )
                    yield
                    continue
                if seen.data not in by_data and len(by_data) >= SHARED_MAX:
                    by_data.clear()
                encoded = by_data.setdefault(seen.data, {})
                for codec, outboxes in groups:
                    frame = self._frame(codec, (seen,), previous, encoded)
                    if not frame:
                        continue
                    for start in range(0, len(outboxes), MEMBERS_PER_STEP):
                        for outbox in outboxes[start : start + MEMBERS_PER_STEP]:
                            if without and id(outbox) in without:
                                continue
                            if key is None:
                                outbox.write(frame)
                            else:
                                counters.superseded += outbox.write_latest(frame, key)
                        yield
        finally:
            self._gone = None

    def _goes_to(self, publications: Sequence[Publication]) -> Sequence[Publication]:
        """Go on to these positions; gives the publications that are new here."""
        at = self.position
        if at is not None and publications[0].epoch == at.epoch and publications[0].offset <= at.offset:
            # They were handed over before this channel came into being here.
            publications = [
                each for each in publications if each.epoch != at.epoch or each.offset > at.offset
            ]
        if publications:
            last = publications[-1]
            self.position = Position(last.epoch, last.offset)
            for collector in self._collectors:
                for each in publications:
                    collector.add(each)
        return publications

    def _write(
        self,
        events: Sequence[CodecEvent],
        groups: Groups,
        skip: Outbox | None,
        previous: Publication | None,
        is_alone: bool,
    ) -> Iterator[None] | None:
        if len(self.members) > (SENDS_PER_STEP if is_alone else MEMBERS_PER_STEP):
            return self._in_pieces(events, groups, skip, previous, is_alone)
        encoded: dict[Encoder, list[bytes]] = {}
        for codec, outboxes in groups:
            frame = self._frame(codec, events, previous, encoded)
            if not frame:
                continue
            for outbox in outboxes:
                if outbox is skip:
                    continue
                if is_alone:
                    outbox.send(frame)
                else:
                    outbox.write(frame)
        return None

    def _in_pieces(
        self,
        events: Sequence[CodecEvent],
        groups: Groups,
        skip: Outbox | None,
        previous: Publication | None,
        is_alone: bool,
    ) -> Iterator[None]:
        encoded: dict[Encoder, list[bytes]] = {}
        step = SENDS_PER_STEP if is_alone else MEMBERS_PER_STEP
        # Who has left gets no more of it, also if it is back: then it was told of a position behind it.
        self._gone = gone = set[int]()
        try:
            for codec, outboxes in groups:
                frame = self._frame(codec, events, previous, encoded)
                if not frame:
                    continue
                for start in range(0, len(outboxes), step):
                    for outbox in outboxes[start : start + step]:
                        if outbox is skip or (gone and id(outbox) in gone):
                            continue
                        if is_alone:
                            outbox.send(frame)
                        else:
                            outbox.write(frame)
                    yield
        finally:
            self._gone = None

    def _frame(
        self,
        codec: Codec,
        events: Sequence[CodecEvent],
        previous: Publication | None,
        encoded: dict[Encoder, list[bytes]],
    ) -> bytes:
        """The bytes for the clients of a codec, b"" if there are none; encoded once for each encoder.

        :param previous: the publication before the first of them; the others have none of their own.
        """
        encoder = codec.encoder
        messages = encoded.get(encoder)
        if messages is None:
            every = [encoder(self.name, event, previous) for event in events]
            messages = encoded[encoder] = [message for message in every if message is not None]
            self._counters.encoded += len(every)
        self._counters.framed += len(messages)
        if len(messages) == 1:
            return codec.frame(messages[0])
        if len(messages) < len(events):
            lacking = len(events) - len(messages)
            self._counters.not_encoded += lacking * (type(events[0]) is Publication)
        return b"".join(map(codec.frame, messages))

    def _break(self, position: Position) -> None:
        self.position = position
        self.previous = None
        for collector in self._collectors:
            collector.spoil()
        for member in list(self.members.values()):
            member.broken()
