"""What a hub has promised, checked against what was seen of it: the model. Pure: no hub, no reactor.

Whoever drives hubs tells the model each call, each answer and each event, in the order in which they happen;
the model keeps the first thing that contradicts ``spread.hub.api``. It does not foretell what a hub does,
since links and servers decide the order, but knows what must agree:

*   a place (epoch, offset) is one publication, a publication has one place, whoever tells of it;
*   what was acknowledged before another was made stands before it, and so do those of one shard;
*   a receiver with positions gets offset n+1 after n, or ``Broken`` with the position from which it goes on.
    That needs a cause: what it lacks had been trimmed, or its epoch was forgotten. At the end it is at the
    top;
*   a publication without a place is heard at most once, and is only missed where the loss was told;
*   all hear a channel in one order, and the publications of one shard in the order in which it made them;
*   one of those with the same idempotency key is made, and all are given its position; a version is dropped
    exactly where a version at least as high stands before it;
*   a read gives what was kept, without a hole, up to the top or its limit.

What the driver does behind the hub's back (trimming, forgetting, deafening) it has to tell in the same step,
before anything else is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from spread.hub.api import Broken, Event, Position, Publication, Stream

__all__ = ["Attempt", "Kept", "Model", "shown"]

ALL = 1 << 60
"""An offset, or a time, beyond all."""


@dataclass(slots=True)
class Attempt:
    """One call of ``publish``."""

    channel: str
    data: bytes
    shard: int
    is_kept: bool
    key: str
    version: int
    version_epoch: str
    began: int
    """When, on the model's own clock, which ticks at each call."""
    ended: int = ALL
    is_taken: bool = False
    is_refused: bool = False
    """Certainly not taken."""
    position: Position | None = None
    trimmed_to: int = 0
    """Up to here nothing was kept when it was answered."""
    may_be_late: bool = False
    """The server may have sent it back."""

    @property
    def is_plain_call(self) -> bool:
        """If it was acknowledged, it was made."""
        return not self.key and not self.version


@dataclass(slots=True)
class Kept:
    """What the server really holds of a channel, seen past the hub."""

    position: Position
    entries: list[tuple[int, bytes]]
    """Offsets and data."""


@dataclass(slots=True)
class _Ear:
    """What one shard hears of one channel."""

    shard: int
    channel: str
    is_followed: bool = False
    """The hub has given it a position, and it was not unsubscribed since."""
    is_loose: bool = True
    """Where it begins is not known."""
    place: Position | None = None
    late_from: int = 0
    late_to: Position | None = None
    """Between these those who had no position still get what was on its way."""
    was_plain: bool = False
    since: int = ALL
    """From here on it hears whatever comes."""
    plain: set[bytes] = field(default_factory=set)
    order: list[bytes] = field(default_factory=list)
    """All, as they came."""
    read: set[bytes] = field(default_factory=set)
    """Of these, those that came from the stream."""
    broken: int = 0
    is_deaf: bool = False
    """To some of what is kept."""
    arrived: dict[bytes, int] = field(default_factory=dict)
    """When, where that is known."""
    last_of: dict[int, Attempt] = field(default_factory=dict)
    """By publishing shard, of those heard the one made last; it did not come from the stream."""
    last_read_of: dict[int, tuple[Attempt, int]] = field(default_factory=dict)
    """The same of those that came from the stream, and when it was heard."""


@dataclass(slots=True)
class _Window:
    """A time in which a shard may have lost publications without a place."""

    began: int
    ended: int = ALL


class Model:
    """Of all shards and channels of one run.

    :param sizes: how many publications each channel keeps.
    :param peek: what the server holds of a channel now; ``None`` if it does not know it.
    :param searched: a second try of a publication finds the first among so many; else it may be told the top.
    """

    def __init__(
        self, sizes: dict[str, int], peek: Callable[[str], Kept | None], *, searched: int = ALL
    ) -> None:
        self.sizes = sizes
        self._searched = searched
        self.wrong: str = ""
        """The first contradiction; "": none."""
        self.story: list[str] = []
        """What was told, a line each."""
        self.attempts: list[Attempt] = []
        self.now = 0
        """The model's own clock."""
        self._peek = peek
        self._by_data: dict[bytes, Attempt] = {}
        self._ears: dict[tuple[int, str], _Ear] = {}
        self._log: dict[tuple[str, str], dict[int, bytes]] = {}
        self._places: dict[bytes, dict[str, int]] = {}
        self._epochs: dict[str, list[str]] = {channel: [] for channel in sizes}
        self._trimmed: dict[tuple[str, str], int] = {}
        self._being_trimmed: Counter[str] = Counter()
        self._forgotten: dict[str, list[int]] = {channel: [] for channel in sizes}
        self._keys_forgotten: list[int] = []
        self._windows: dict[int, list[_Window]] = {}
        self._is_gone: set[int] = set()
        self._sends_back: int | None = None
        self._takes_again: set[int] = set()

    # -- saying what is wrong --------------------------------------------------------------------------

    def check(self) -> None:
        """:raises AssertionError: something contradicts the promise."""
        assert not self.wrong, self.wrong

    def say(self, what: str) -> None:
        """Something is wrong; the first one counts."""
        if not self.wrong:
            self.wrong = what
            self.story.append(f"{self.now} WRONG: {what}")

    def _tick(self, what: str) -> int:
        self.now += 1
        self.story.append(f"{self.now} {what}")
        return self.now

    # -- publishing ------------------------------------------------------------------------------------

    def publishes(
        self,
        channel: str,
        shard: int,
        *,
        is_kept: bool,
        key: str = "",
        version: int = 0,
        version_epoch: str = "",
    ) -> Attempt:
        """A shard is about to publish; gives what, whose ``data`` is like no other."""
        data = b"%s%d" % (channel.encode(), len(self.attempts))
        kind = " kept" * is_kept + f" key {key}" * bool(key) + f" version {version}" * bool(version)
        now = self._tick(f"shard {shard} publishes {data!r}{kind}")
        attempt = Attempt(channel, data, shard, is_kept, key, version, version_epoch, now)
        attempt.may_be_late = self._sends_back is not None and shard not in self._takes_again
        self.attempts.append(attempt)
        self._by_data[data] = attempt
        return attempt

    def acknowledged(self, attempt: Attempt, position: Position | None) -> None:
        """It was taken."""
        attempt.ended = self._tick(f"{attempt.data!r} is acknowledged at {_at(position)}")
        attempt.is_taken, attempt.position = True, position
        if self._sends_back is not None and attempt.is_kept and attempt.began > self._sends_back:
            self._takes_again.add(attempt.shard)
        if position is None:
            if attempt.is_kept and not attempt.key:
                self.say(f"{attempt.data!r} is kept and has no position")
            return
        if not attempt.is_kept and not attempt.key:
            self.say(f"{attempt.data!r} is not kept and has the position {_at(position)}")
        attempt.trimmed_to = self._trimmed_to(attempt.channel, position.epoch)

    def failed(self, attempt: Attempt, *, is_unknown: bool) -> None:
        """It was not acknowledged."""
        attempt.ended = self._tick(f"{attempt.data!r} has failed" + " perhaps" * is_unknown)
        attempt.is_refused = not is_unknown

    def sends_back(self) -> None:
        """The server may send back what is kept, of each shard until it has taken one made after this.

        What is not kept may overtake it.
        """
        self._sends_back = self._tick("the server sends publications back")
        self._takes_again.clear()
        for attempt in self.attempts:
            attempt.may_be_late = attempt.may_be_late or attempt.ended == ALL

    # -- hearing ---------------------------------------------------------------------------------------

    def _ear(self, shard: int, channel: str) -> _Ear:
        return self._ears.setdefault((shard, channel), _Ear(shard, channel))

    def subscribed(self, shard: int, channel: str, position: Position | None) -> None:
        """The hub has answered a subscription, with a position if it is to be followed."""
        now = self._tick(f"shard {shard} has subscribed {channel} at {_at(position)}")
        ear = self._ear(shard, channel)
        ear.since = min(ear.since, now)
        if position is None:
            ear.was_plain = True
            return
        if ear.is_followed and ear.place is not None and ear.place != position:
            self.say(f"shard {shard} is at {_at(ear.place)} in {channel} and is told {_at(position)}")
        if ear.place is not None:
            if ear.place.epoch == position.epoch:
                is_back = position.offset < ear.place.offset
            else:
                is_back = not self._is_older(channel, ear.place.epoch, position.epoch)
            if is_back:
                self.say(f"shard {shard} has had {_at(ear.place)} in {channel} and begins at {_at(position)}")
        if not ear.is_followed and ear.was_plain:
            is_same = ear.place is not None and ear.place.epoch == position.epoch
            ear.late_from = ear.place.offset if ear.place is not None and is_same else 0
            ear.late_to = position
        ear.is_followed, ear.is_loose, ear.place = True, False, position

    def unsubscribes(self, shard: int, channel: str) -> None:
        """A shard is about to give up a channel; it goes on hearing it for a while."""
        self._tick(f"shard {shard} unsubscribes {channel}")
        self._gives_up(self._ear(shard, channel))

    def _gives_up(self, ear: _Ear) -> None:
        ear.is_followed, ear.is_loose = False, True
        ear.since = ALL

    def leaves(self, shard: int) -> None:
        """A shard is about to stop."""
        self._tick(f"shard {shard} stops")
        self._is_gone.add(shard)
        self._windows.pop(shard, None)
        for ear in self._ears.values():
            if ear.shard == shard:
                self._gives_up(ear)

    def arrives(self, shard: int, channel: str, data: bytes) -> None:
        """A publication has come to a shard, which has not been handed it yet."""
        self._ear(shard, channel).arrived[data] = self._tick(f"{data!r} comes to shard {shard} on {channel}")

    def heard(self, shard: int, channel: str, event: Event, *, is_read: bool = False) -> None:
        """A shard was handed something.

        :param is_read: it comes from the stream. So what is not kept, and was published before it, is handed
            over after it if it has come later.
        """
        self._tick(f"shard {shard} {'reads' if is_read else 'hears'} {_shown(event)} on {channel}")
        ear = self._ear(shard, channel)
        if is_read and isinstance(event, Publication):
            ear.read.add(event.data)
        if shard in self._is_gone:
            self.say(f"shard {shard} has stopped and hears {_shown(event)}")
        if isinstance(event, Broken):
            self._heard_broken(ear, event.position)
        elif isinstance(event, Publication):
            attempt = self._by_data.get(event.data)
            if attempt is None or attempt.channel != channel:
                self.say(f"shard {shard} hears {event.data!r} on {channel}, which nobody published there")
            elif attempt.is_refused:
                self.say(f"shard {shard} hears {event.data!r}, which was refused")
            elif event.offset:
                self._heard_kept(ear, Position(event.epoch, event.offset), attempt)
            elif attempt.is_kept:
                self.say(f"shard {shard} hears {event.data!r} without the position that it has")
            elif event.data in ear.plain:
                self.say(f"shard {shard} hears {event.data!r} twice")
            else:
                ear.plain.add(event.data)
                self._comes_next(ear, attempt)

    def _heard_kept(self, ear: _Ear, at: Position, attempt: Attempt) -> None:
        self._is_at(ear.channel, at, attempt.data)
        place = ear.place
        if place is not None and place.epoch == at.epoch and at.offset <= place.offset:
            if ear.late_from < at.offset and _is_up_to(at, ear.late_to):
                ear.late_from = at.offset
                self._comes_next(ear, attempt)
            else:
                self.say(f"shard {ear.shard} is at {_at(place)} in {ear.channel} and gets {_at(at)} again")
            return
        if (
            place is not None
            and place.epoch != at.epoch
            and self._is_older(ear.channel, at.epoch, place.epoch)
        ):
            self.say(f"shard {ear.shard} is at {_at(place)} in {ear.channel} and gets {_at(at)}: back")
        if not ear.is_loose and place != Position(at.epoch, at.offset - 1):
            self.say(f"shard {ear.shard} is at {_at(place)} in {ear.channel} and gets {_at(at)}")
        ear.place = at
        self._comes_next(ear, attempt)

    def _comes_next(self, ear: _Ear, attempt: Attempt) -> None:
        ear.order.append(attempt.data)
        if not attempt.is_plain_call or len(self._places.get(attempt.data, {})) > 1:
            return
        shard, is_read = attempt.shard, attempt.data in ear.read
        last = ear.last_of.get(shard)
        last_read, when = ear.last_read_of.get(shard, (None, 0))
        may_be_late = attempt.may_be_late or (is_read and ear.is_deaf)
        if last is not None and last.began > attempt.began and not may_be_late:
            self._comes_late(ear, attempt, last)
        may_be_late = attempt.may_be_late or ear.arrived.get(attempt.data, self.now) > when
        if last_read is not None and last_read.began > attempt.began and not may_be_late:
            self._comes_late(ear, attempt, last_read)
        if is_read:
            ear.last_read_of[shard] = attempt, self.now
        elif last is None or last.began < attempt.began:
            ear.last_of[shard] = attempt

    def _comes_late(self, ear: _Ear, attempt: Attempt, last: Attempt) -> None:
        self.say(f"shard {ear.shard} hears {attempt.data!r} after {last.data!r}, which was made later")

    def _heard_broken(self, ear: _Ear, at: Position) -> None:
        place, ear.place = ear.place, at
        ear.broken += 1
        trimmed_to = self._trimmed_to(ear.channel, at.epoch)
        told = f"in {ear.channel} shard {ear.shard}, at {_at(place)}, is told Broken at {_at(at)}"
        if at.offset > trimmed_to:
            self.say(f"{told}: all above {trimmed_to} is kept")
        if ear.is_loose or place is None:
            return
        if place.epoch == at.epoch:
            if at.offset <= place.offset:
                self.say(f"{told}: nothing is missing")
        elif not self._is_older(ear.channel, place.epoch, at.epoch):
            self.say(f"{told}: an epoch before")

    # -- what is lost on purpose -----------------------------------------------------------------------

    def trims(self, channel: str, *, down_to: int = 0) -> None:
        """Of a channel all but the newest ``down_to`` have just been removed."""
        self._tick(f"{channel} is trimmed down to {down_to}")
        self._were_trimmed(channel, down_to)

    def _were_trimmed(self, channel: str, down_to: int) -> None:
        kept = self._look(channel)
        if kept is not None:
            at = (channel, kept.position.epoch)
            self._trimmed[at] = max(self._trimmed.get(at, 0), kept.position.offset - down_to)

    def begins_to_trim(self, channel: str) -> None:
        """All that is kept of a channel may be removed at any time, until ``ends_trimming``."""
        self._tick(f"{channel} is being trimmed")
        self._being_trimmed[channel] += 1

    def ends_trimming(self, channel: str, *, is_done: bool) -> None:
        """It was removed, or it never will be."""
        self._tick(f"{channel} {'was' if is_done else 'was not'} trimmed")
        self._being_trimmed[channel] -= 1
        if is_done:
            self._were_trimmed(channel, 0)

    def forgets(self, channel: str, epoch: str = "") -> None:
        """The server has just lost a channel, which had this epoch."""
        if epoch and epoch not in self._epochs[channel]:
            self._has_epoch(channel, epoch)
        self._forgotten[channel].append(
            self._tick(f"{channel} is forgotten with its epoch {epoch or 'none'}")
        )

    def forgets_keys(self) -> None:
        """The server has lost idempotency keys."""
        self._keys_forgotten.append(self._tick("keys are forgotten"))

    def may_lose(self, shard: int, since: int | None = None) -> None:
        """The shard may miss publications without a place, until ``told_of_loss``.

        :param since: what ``now`` was when it was still sure to hear all; else that is now.
        """
        now = self._tick(f"shard {shard} may lose publications since {since}")
        windows = self._windows.setdefault(shard, [])
        if not windows or windows[-1].ended != ALL:
            windows.append(_Window(now if since is None else since))

    def told_of_loss(self, shard: int) -> None:
        """By ``Receiver.missed``: the shard hears everything again."""
        now = self._tick(f"shard {shard} is told that it may have lost something")
        windows = self._windows.get(shard)
        if windows:
            windows[-1].ended = min(windows[-1].ended, now)

    def deafens(self, shard: int, channel: str) -> None:
        """The shard will not get single messages of what is kept, as no link does."""
        self._tick(f"shard {shard} is deaf to something on {channel}")
        self._ear(shard, channel).is_deaf = True

    # -- reading ---------------------------------------------------------------------------------------

    def asks(self) -> int:
        """A history is about to be read; gives what ``read`` wants."""
        return self._tick("a history is asked for")

    def read(
        self, asked: int, channel: str, since: Position | None, limit: int, reverse: bool, stream: Stream
    ) -> None:
        """A history was read."""
        top, found = stream.position, [each.offset for each in stream.publications]
        what = f"read of {channel} since {_at(since)} limit {limit} reverse {reverse}"
        what = f"{what}: top {_at(top)}, got {found}"
        self._tick(what)
        self._look(channel)
        for each in stream.publications:
            if each.epoch != top.epoch:
                self.say(f"{what}: {each.epoch} is not its epoch")
            self._is_at(channel, Position(each.epoch, each.offset), each.data)
        for attempt in self.attempts:
            at = attempt.position
            if attempt.channel == channel and at is not None and attempt.ended < asked:
                is_same = at.epoch == top.epoch
                if at.offset > top.offset if is_same else not self._is_older(channel, at.epoch, top.epoch):
                    self.say(f"{what}: {attempt.data!r} at {_at(at)} was acknowledged before")
        step = -1 if reverse else 1
        if any(there != here + step for here, there in pairwise(found)):
            self.say(f"{what}: a hole")
        if limit >= 0 and len(found) > limit:
            self.say(f"{what}: too many")
        first, last = self._trimmed_to(channel, top.epoch) + 1, top.offset
        if since is not None:
            if reverse:
                last = min(last, since.offset - 1)
            else:
                first = max(first, since.offset + 1)
            if any(not (each < since.offset if reverse else each > since.offset) for each in found):
                self.say(f"{what}: beyond what was asked for")
        # What is from ``first`` on is kept for certain; what is below it may be.
        if limit and not found and first <= last:
            self.say(f"{what}: all from {first} to {last} is kept")
        elif found and reverse:
            if found[0] != last or (found[-1] > first and len(found) != limit):
                self.say(f"{what}: not all from {last} down to {first}")
        elif found and (found[0] > first or (found[-1] != last and len(found) != limit)):
            self.say(f"{what}: not all from {first} up to {last}")

    # -- the end ---------------------------------------------------------------------------------------

    def lacks(self) -> str:
        """What is still to come, when all links are up; "": nothing, so that it has ``settled``."""
        for attempt in self.attempts:
            if attempt.ended == ALL:
                return f"{attempt.data!r} was never answered"
        for shard, windows in self._windows.items():
            if any(window.ended == ALL for window in windows):
                return f"shard {shard} was never told that it may have lost something"
        for ear in self._ears.values():
            if missing := self._missing(ear):
                return missing
        return ""

    def settled(self) -> None:
        """All links are up, and all that was asked is answered: now nothing may be missing."""
        self._tick("all is settled")
        if missing := self.lacks():
            self.say(missing)
        for channel in self.sizes:
            kept = self._look(channel)
            if kept is not None:
                self._kept_is_whole(channel, kept)
        for (channel, epoch), log in self._log.items():
            self._is_in_order(channel, epoch, log)
        for attempt in self.attempts:
            if attempt.key:
                self._once_for_its_key(attempt)
            elif attempt.version:
                self._dropped_or_made(attempt)
            elif attempt.position is not None:
                self._where_it_was_told(attempt)
        self._heard_in_one_order()

    def _kept_is_whole(self, channel: str, kept: Kept) -> None:
        top = kept.position
        offsets = [offset for offset, _ in kept.entries]
        least = self._trimmed_to(channel, top.epoch)
        if offsets != list(range(offsets[0] if offsets else top.offset + 1, top.offset + 1)):
            self.say(f"{channel} keeps {offsets} below its top {_at(top)}")
        if set(range(least + 1, top.offset + 1)) - set(offsets):
            self.say(f"{channel} keeps {offsets} and not all from {least + 1} on")
        if len(offsets) > self.sizes[channel]:
            self.say(f"{channel} keeps {len(offsets)}")
        for offset, data in kept.entries:
            self._is_at(channel, Position(top.epoch, offset), data)
        for attempt in self.attempts:
            at = attempt.position
            if attempt.channel != channel or at is None or at.epoch != top.epoch:
                continue
            if at.offset > top.offset:
                self.say(f"{attempt.data!r} was acknowledged at {_at(at)}, above the top {_at(top)}")

    def _is_in_order(self, channel: str, epoch: str, log: dict[int, bytes]) -> None:
        latest, of = 0, b""
        last_of_shard: dict[int, int] = {}
        version: dict[str, int] = {}
        last_epoch: str | None = None
        for offset in sorted(log):
            attempt = self._by_data.get(log[offset])
            if attempt is None:
                continue  # said already
            where = f"{channel} {epoch} {offset}: {attempt.data!r}"
            if attempt.ended < latest:
                self.say(f"{where} was acknowledged before {of!r} was made")
            if attempt.began > latest:
                latest, of = attempt.began, attempt.data
            if last_of_shard.get(attempt.shard, 0) > attempt.began:
                self.say(f"{where} comes after later ones of its shard")
            last_of_shard[attempt.shard] = attempt.began
            if attempt.version:
                if attempt.version_epoch == last_epoch and attempt.version <= version[attempt.version_epoch]:
                    self.say(f"{where} has an old version")
                last_epoch = attempt.version_epoch
                version[attempt.version_epoch] = attempt.version

    def _where_it_was_told(self, attempt: Attempt) -> None:
        at = attempt.position
        assert at is not None
        log = self._log.get((attempt.channel, at.epoch), {})
        there = log.get(at.offset, attempt.data)
        places = self._places.get(attempt.data, {})
        real = places.get(at.epoch)
        if there == attempt.data and real in (None, at.offset):
            return
        if real is None and not places:
            if all(offset in log for offset in range(1, at.offset + 1)):
                self.say(f"{attempt.data!r} was told {_at(at)}, where {there!r} is, and is nowhere")
        # When it was tried again, where it was could not be found if it was trimmed, or too far back.
        elif (real or 0) > max(attempt.trimmed_to, at.offset - self._searched):
            self.say(f"{attempt.data!r} is at {real}, and was told {_at(at)}, where {there!r} is")

    def _once_for_its_key(self, attempt: Attempt) -> None:
        for other in self._of_key(attempt):
            began, ended = min(attempt.began, other.began), max(attempt.ended, other.ended)
            if any(began < forgotten < ended for forgotten in self._keys_forgotten):
                continue
            if attempt.is_taken and other.is_taken and attempt.position != other.position:
                told = (
                    f"{attempt.data!r} is told {_at(attempt.position)}, {other.data!r} {_at(other.position)}"
                )
                self.say(f"key {attempt.key}: {told}")
            if other is not attempt and self._was_seen(attempt) and self._was_seen(other):
                self.say(f"key {attempt.key}: {attempt.data!r} and {other.data!r} were made")
            places = self._places.get(other.data, {})
            if attempt.is_taken and places:
                at = attempt.position
                if at is None or places.get(at.epoch) != at.offset:
                    self.say(
                        f"key {attempt.key}: {other.data!r} is at {places}, {attempt.data!r} told {_at(at)}"
                    )

    def _of_key(self, attempt: Attempt) -> list[Attempt]:
        return [each for each in self.attempts if each.key == attempt.key and each.channel == attempt.channel]

    def _was_seen(self, attempt: Attempt) -> bool:
        return attempt.data in self._places or any(attempt.data in ear.plain for ear in self._ears.values())

    def _dropped_or_made(self, attempt: Attempt) -> None:
        at = attempt.position
        if at is None:
            return
        log = self._log.get((attempt.channel, at.epoch), {})
        real = self._places.get(attempt.data, {})
        if at.epoch in real or log.get(at.offset) is None or attempt.trimmed_to >= at.offset:
            return  # made; or nobody knows. That it might be made is checked with the order of the log
        if real:
            return
        before = [self._by_data[log[offset]] for offset in sorted(log) if offset <= at.offset]
        is_complete = len(before) == at.offset
        versions = [each for each in before if each.version]
        if is_complete and not (
            versions
            and versions[-1].version_epoch == attempt.version_epoch
            and versions[-1].version >= attempt.version
        ):
            self.say(f"{attempt.data!r}, version {attempt.version}, was dropped at {_at(at)}")

    def _missing(self, ear: _Ear) -> str:
        if ear.is_followed:
            kept = self._look(ear.channel)
            if kept is None or ear.place != kept.position:
                top = kept.position if kept is not None else None
                return (
                    f"shard {ear.shard} is left at {_at(ear.place)} in {ear.channel}, the top is {_at(top)}"
                )
        if ear.since == ALL:
            return ""
        heard = set(ear.order)
        for attempt in self.attempts:
            if attempt.channel != ear.channel or attempt.data in heard or not self._is_due(ear, attempt):
                continue
            if attempt.key:
                group = self._of_key(attempt)
                if any(each.data in heard or not self._is_due(ear, each) for each in group):
                    continue
            return f"shard {ear.shard} has lost {attempt.data!r} and was not told that it may have"
        return ""

    def _is_due(self, ear: _Ear, attempt: Attempt) -> bool:
        """Who hears a channel has heard this."""
        if not attempt.is_taken or attempt.began <= ear.since or attempt.version:
            return False
        if attempt.key and self._keys_forgotten:
            return False
        if attempt.is_kept:
            # It has its place: who follows has been there. Others have got it as it came, or have lost it.
            has_followed = ear.is_followed and not _is_up_to(attempt.position, ear.late_to)
            if has_followed or ear.broken or ear.is_deaf or attempt.key:
                return False
        windows = self._windows.get(ear.shard, [])
        return not any(each.began < attempt.ended and attempt.began < each.ended for each in windows)

    def _heard_in_one_order(self) -> None:
        for channel in self.sizes:
            ears = [ear for (_, name), ear in self._ears.items() if name == channel]
            for one, other in combinations(ears, 2):
                places = {data: place for place, data in enumerate(other.order)}
                common = [data for data in one.order if data in places]
                for before, after in pairwise(
                    data for data in common if self._has_place_in_both(data, one, other)
                ):
                    if places[before] > places[after]:
                        self.say(f"{before!r} and {after!r} were heard in two orders on {channel}")

    def _has_place_in_both(self, data: bytes, one: _Ear, other: _Ear) -> bool:
        return data not in one.read and data not in other.read and len(self._places.get(data, {})) < 2

    # -- what is known ---------------------------------------------------------------------------------

    def _look(self, channel: str) -> Kept | None:
        kept = self._peek(channel)
        if kept is not None and kept.position.epoch not in self._epochs[channel]:
            self._has_epoch(channel, kept.position.epoch)
        return kept

    def _has_epoch(self, channel: str, epoch: str) -> None:
        epochs = self._epochs[channel]
        epochs.append(epoch)
        if len(epochs) > len(self._forgotten[channel]) + 1:
            self.say(f"{channel} has a new epoch, {epoch}, and was not forgotten")

    def _is_older(self, channel: str, one: str, other: str) -> bool:
        self._look(channel)
        epochs = self._epochs[channel]
        if one not in epochs or other not in epochs:
            self.say(f"{channel} has never had the epoch {one if one not in epochs else other}")
            return True
        return epochs.index(one) < epochs.index(other)

    def _trimmed_to(self, channel: str, epoch: str) -> int:
        """Up to here it may be that nothing is kept."""
        kept = self._look(channel)
        if kept is None or kept.position.epoch != epoch or self._being_trimmed[channel]:
            return ALL
        return max(self._trimmed.get((channel, epoch), 0), kept.position.offset - self.sizes[channel])

    def _is_at(self, channel: str, at: Position, data: bytes) -> None:
        log = self._log.setdefault((channel, at.epoch), {})
        there = log.setdefault(at.offset, data)
        if there != data:
            self.say(f"{data!r} and {there!r} are both at {_at(at)} in {channel}")
        places = self._places.setdefault(data, {})
        offset = places.setdefault(at.epoch, at.offset)
        if offset != at.offset:
            self.say(f"{data!r} is at {offset} and at {at.offset} of {channel}")
        attempt = self._by_data.get(data)
        if attempt is None:
            self.say(f"{data!r} is at {_at(at)} in {channel}, and nobody published it")
        elif len(places) > 1 and not self._may_come_twice(attempt, channel):
            self.say(f"{data!r} is in {channel} twice: {places}")

    def _may_come_twice(self, attempt: Attempt, channel: str) -> bool:
        # While it waited for its answer the server forgot that it had taken it.
        return any(attempt.began < forgotten < attempt.ended for forgotten in self._forgotten[channel])


def shown(actions: Sequence[object]) -> str:
    """A list of actions, one a line, to be pasted into a test."""
    return "\n".join(f"    {action!r}," for action in actions)


def _at(position: Position | None) -> str:
    return "no position" if position is None else f"{position.epoch[:4]}:{position.offset}"


def _shown(event: Event) -> str:
    if isinstance(event, Broken):
        return f"Broken at {_at(event.position)}"
    if isinstance(event, Publication):
        return f"{event.data!r}" + (f" at {_at(Position(event.epoch, event.offset))}" if event.offset else "")
    return type(event).__name__


def _is_up_to(at: Position | None, last: Position | None) -> bool:
    return at is not None and last is not None and at.epoch == last.epoch and at.offset <= last.offset
