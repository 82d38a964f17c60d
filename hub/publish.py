"""Publications on their way to Redis: the journal.

Every publication is in exactly one of three states:

    WAITING   accepted, not on a connection: the link is down, or the server said "later"
    SENT      on a connection, reply outstanding
    KEPT      Redis has it, and too few of its replicas are known to have it (``min_replicas``)
    DONE      its Deferred has fired: taken, refused, or out of time

    WAITING → SENT      the link is up
    SENT    → WAITING   the connection broke (outcome unknown: keeps its sequence, so that receivers
                        drop it if Redis had taken it), or the server said "later" (certainly not
                        done: gets a new sequence, since later ones may have been taken meanwhile)
    SENT    → DONE      Redis answered; or it said "later" to the second try of a plain one, while the
                        outcome of the first is unknown: neither sequence would be right, so the
                        publisher is told
    SENT    → KEPT      Redis answered, and it must have replicas: see ``replicas``
    KEPT    → DONE      they have it
    KEPT    → WAITING   the connection broke
    any     → DONE      the deadline passed

Order: publications leave in the order they were made, also across a reconnect. Only a plain one that was
answered "later" may be overtaken, by those that were on the connection together with it. One that is kept
tells the script which of its channel was on the connection before it, and is not taken before that one: so
the kept ones of a shard are kept in the order they were made.

From this follows what the script rests on: of a shard's publications in a channel, all below the highest that
was taken are done. A second try of a lower one was taken, wherever it is by now. Where this does not hold,
since others may have been sent to another server meanwhile, and nothing that is kept tells, the publisher is
told that the outcome is unknown; it is never acknowledged on a guess.

One case breaks the third promise of ``hub.api``, for plain publications alone: one is answered "later", one
behind it on the same connection is taken, and the connection breaks before either answer has come. The first
is then sent again under its old sequence, and receivers take it for a double. Redis says "later" when it
starts or has been demoted, so this needs it to change its mind within one pipeline and to vanish before its
answers arrive.

What they look like there, PUBLISH or script, is told in ``commands``. That the server has forgotten a script
is handled as "later". A second try of a publication that is kept says so, and the script gives the position
of the first: so nothing is kept twice either.

In a cluster there is a journal for each group, and one sequence for all of them. A publication that is
answered "moved" was certainly not done: it waits, and the hub takes it out when it knows who serves its slot
now (``release``), with those behind it, and gives them to the journal there (``take_over``). One that comes
back later goes there at once; so that none overtakes it, the other journal sends nothing meanwhile
(``hold``). One that is kept keeps its sequence if the outcome of its first try is unknown: the script knows
it, wherever it is by now. A plain one fails then. One that is kept and answered "ask" is sent once more, to
the server that is named; a plain one waits until its slot has moved, since its subscribers have not yet.

An announcement (joined, left) goes the same way at most once: when its connection breaks it fails.

Cost on the shard, all of it, from ``RedisHub.publish`` to its Deferred, 400 at a time: 4.0 µs plain, 5.0 µs
with an idempotency key, 6.9 µs kept, 7.3 µs kept with a ``ClientInfo``. A kept one costs Redis 5.6 µs.

Bounds: all that is not DONE counts against ``max_publications`` and ``max_bytes`` (``entry.Room``); one more
is refused with ``JournalFull`` at once. Nothing stays longer than ``publish_seconds``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from spread.hub.api import PLAIN, Format, HubCounters, Joined, Left, Position, PublishOptions
from spread.hub.commands import Commands
from spread.hub.entry import DONE, KEPT, SENT, WAITING, Entry, JournalLimits, Room
from spread.hub.envelope import KIND_JOINED, KIND_LEFT, KIND_PUBLICATION, OFFSET_DIGITS, pack_meta
from spread.hub.errors import HubError, HubRefused, HubUnavailable, JournalFull, LinkLost, ReplyError
from spread.hub.link import CommandProtocol
from spread.hub.owners import REFUSED, fenced
from spread.hub.reactor import Clock, Timer
from spread.hub.replicas import Replicas

__all__ = ["Journal", "JournalLimits"]

LATER_SECONDS = 0.1
"""Pause after the server said "later", before it is asked again."""

ELSEWHERE = frozenset({"MOVED", "ASK"})
"""Codes that mean: not done, the slot is served elsewhere."""

NOT_NOW = frozenset({"NOSCRIPT", "OVERTAKES"})
"""Further codes that mean "later": the script is not there; what was before it was not taken."""

UNDECIDED = "UNDECIDED"
"""Code that means: whether the first try was taken cannot be told any more."""

TEMPORARY = frozenset({"OOM", "MISCONF"})
"""Codes that mean: not done, and it may take a person to change that."""


class Journal:
    """All publications of this shard to one Redis server that are not done yet.

    :param publish_command: PUBLISH, or SPUBLISH.
    :param sequences: numbers the publications; one for all journals of a hub.
    """

    def __init__(
        self,
        clock: Clock,
        hub: str,
        incarnation: bytes,
        limits: JournalLimits,
        counters: HubCounters,
        publish_command: bytes = b"PUBLISH",
        sequences: Iterator[int] | None = None,
    ) -> None:
        self.home: Callable[[bytes], Journal] = lambda key: self
        """In a cluster: the journal of who serves a key, as far as is known."""
        self.target: Callable[[ReplyError], CommandProtocol | None] = lambda error: None
        """In a cluster: the connection to whom an "ask" names, if it is up."""
        self.room = Room(limits, counters)
        self._commands = Commands(publish_command, incarnation)
        self._clock = clock
        self._hub = hub
        self._limits = limits
        self._counters = counters
        self._connection: CommandProtocol | None = None
        self._sequences = sequences if sequences is not None else count(1)
        self._holds = 0
        # In the order in which they are to be sent.
        self._unsent: deque[Entry] = deque()
        # In order of acceptance, which is the order of the deadlines too.
        self._open: deque[Entry] = deque()
        self._in_flight = 0
        # Came back: from a broken connection, and answered "later". They are joined with the unsent when
        # nothing is in flight any more.
        self._returned: list[Entry] = []
        self._put_off: list[Entry] = []
        # By channel: the last kept one on the connection, and on that of another group.
        self._last: dict[bytes, Entry] = {}
        self._last_asked: dict[bytes, Entry] = {}
        self._replicas: Replicas[Entry] | None = None
        self._replicas_elsewhere: dict[CommandProtocol, Replicas[Entry]] = {}
        self._expiry: Timer | None = None
        self._later: Timer | None = None
        self._is_stopped = False

    def publish(
        self,
        key: bytes,
        data: bytes,
        format: Format,
        session: int,
        options: PublishOptions = PLAIN,
        keys: tuple[bytes, ...] = (),
    ) -> Deferred[Position | None]:
        """Publish to the Redis channel ``key``; fires when Redis has it, with its position if it is kept.

        :param keys: with a history: meta and stream; with an idempotency key the result; with a fence the
            owner.
        :raises Fenced: as a failure, when the fence is not the owner.
        :raises JournalFull: as a failure, at once.
        :raises HubUnavailable: as a failure, at the deadline, when stopped, or when Redis has no room.
        :raises HubRefused: as a failure, when an ACL forbids it.
        """
        deadline = self._clock.seconds() + self._limits.publish_seconds
        entry = Entry(self, key, data, int(format), session, deadline)
        if options is not PLAIN:
            entry.options = options
            entry.keys = keys
            entry.meta = pack_meta(options.info, options.tags, options.exclude)
            entry.size += len(entry.meta)
        return self._accept(entry)

    def announce(self, key: bytes, event: Joined | Left) -> Deferred[None]:
        """Tell the subscribers of the Redis channel ``key``, at most once, after what was published before.

        Call it only while the link is up.

        :raises HubUnavailable: as a failure, when the link breaks.
        :raises HubRefused: as a failure, when an ACL forbids it.
        """
        deadline = self._clock.seconds() + self._limits.publish_seconds
        entry = Entry(self, key, b"", 0, 0, deadline)
        entry.kind = KIND_JOINED if isinstance(event, Joined) else KIND_LEFT
        entry.meta = pack_meta(event.info, None)
        entry.size = len(entry.meta)
        return self._accept(entry).addCallback(_nothing)

    def _accept(self, entry: Entry) -> Deferred[Position | None]:
        counters = self._counters
        if self._is_stopped:
            return fail(HubUnavailable(self._hub, "this shard is stopping"))
        # One that need not wait is taken whatever its size.
        if self.room.is_full_for(entry) and (self._open or self._connection is None):
            counters.publish_failures += 1
            return fail(JournalFull(self._hub, counters.journal_publications, counters.journal_bytes))
        self.room.takes(entry)
        self._open.append(entry)
        if self._expiry is None:
            self._expiry = self._clock.callLater(self._limits.publish_seconds, self._expire)
        is_free = self._later is None and not self._holds and not self._unsent
        if self._connection is not None and is_free:
            self._send(self._connection, entry)
        else:
            self._unsent.append(entry)
        return entry.result

    def link_up(self, connection: CommandProtocol) -> None:
        """A connection is ready: send what waits."""
        self._connection = connection
        self._commands.forget()
        self._replicas = self._replicas_of(connection) if self._limits.min_replicas else None
        self._send_waiting()

    def link_down(self) -> None:
        """The connection is gone, and has failed what it had not answered."""
        self._connection = None
        if self._replicas is not None:
            self._replicas.stop()
            self._replicas = None
        for entry in self._put_off:
            if not entry.is_unsure and entry.options.history is None:
                entry.sequence = 0
        # Those that keep their sequence come first, in its order (one made after the cut returns before
        # those made before it): receivers drop whatever comes after a higher one. So do those of the kept
        # that were answered "later": none behind them in their channels was taken.
        waiting = (*self._returned, *self._put_off, *self._unsent)
        numbered = sorted((entry for entry in waiting if entry.sequence), key=Entry.number)
        self._unsent = deque((*numbered, *(entry for entry in waiting if not entry.sequence)))
        self._returned.clear()
        self._put_off.clear()
        if self._later is not None:
            self._later.cancel()
            self._later = None
        for entry in [entry for entry in self._unsent if entry.kind != KIND_PUBLICATION]:
            self._fail(entry, HubUnavailable(self._hub, "the link broke; it was not told"))

    # -- from one group of a cluster to another --------------------------------------------------------

    def release(self, leaves: Callable[[bytes], bool]) -> list[Entry]:
        """Take out what waits for channels of which ``leaves`` says so, in its order."""
        waiting = (*self._put_off, *self._unsent)
        taken = [entry for entry in waiting if entry.state == WAITING and leaves(entry.key)]
        if taken:
            gone = set(taken)
            self._put_off = [entry for entry in self._put_off if entry not in gone]
            self._unsent = deque(entry for entry in self._unsent if entry not in gone)
            self._open = deque(entry for entry in self._open if entry not in gone)
        return taken

    def take_over(self, entries: list[Entry]) -> None:
        """Send what another journal has released, behind what waits here."""
        for entry in entries:
            entry.journal.room.gives(entry)
            entry.journal = self
            self.room.takes(entry)
            if entry.is_unsure:
                entry.is_moved = True
            else:
                entry.sequence = 0
        if self._is_stopped:
            for entry in entries:
                self._fail(entry, HubUnavailable(self._hub, "this shard is stopping"))
            return
        self._unsent.extend(entries)
        self._open = deque(sorted((*self._open, *entries), key=lambda entry: entry.deadline))
        if self._expiry is not None and self._expiry.active():
            self._expiry.cancel()
        left = self._open[0].deadline - self._clock.seconds() if self._open else self._limits.publish_seconds
        self._expiry = self._clock.callLater(max(0.0, left), self._expire)
        self._send_waiting()

    def awaits(self, leaves: Callable[[bytes], bool]) -> bool:
        """Something is on the connection for channels of which ``leaves`` says so."""
        return any(entry.state == SENT and leaves(entry.key) for entry in self._open)

    def hold(self) -> None:
        """Send nothing more until ``go_on`` was called as often."""
        self._holds += 1

    def go_on(self) -> None:
        """See ``hold``."""
        self._holds -= 1
        self._send_waiting()

    def _is_elsewhere(self, entry: Entry, error: ReplyError) -> None:
        is_kept = entry.options.history is not None
        if entry.is_unsure and not entry.is_told_again():
            self._fail(entry, HubUnavailable(self._hub, f"{error}; whether it was taken is unknown"))
            return
        self._counters.publish_retries += 1
        target = self.target(error) if is_kept and error.code == "ASK" else None
        if target is not None:
            entry.is_asked = entry.is_moved = True
            self._in_flight += 1
            before = self._last_asked.get(entry.key)
            self._last_asked[entry.key] = entry
            self._commands.ask(target, entry, before)
            if self._limits.min_replicas:
                self._replicas_elsewhere = {
                    c: r for c, r in self._replicas_elsewhere.items() if not r.is_idle
                }
                if target not in self._replicas_elsewhere:
                    self._replicas_elsewhere[target] = self._replicas_of(target)
                self._replicas_elsewhere[target].sent(entry)
            return
        entry.state = WAITING
        if not is_kept:
            entry.is_unsure = False  # the result of the first try decides, whatever the sequence
        home = self.home(entry.key)
        if home is self:
            self._put_off.append(entry)
            self._soon()
        else:
            self._open.remove(entry)
            home.take_over([entry])

    def _soon(self) -> None:
        if self._later is None and not self._is_stopped:
            self._later = self._clock.callLater(LATER_SECONDS, self._ask_again)

    def stop(self) -> None:
        """Fail what is left. Idempotent."""
        self._is_stopped = True
        self._connection = None
        for replicas in (self._replicas, *self._replicas_elsewhere.values()):
            if replicas is not None:
                replicas.stop()
        self._replicas = None
        self._replicas_elsewhere.clear()
        for timer in (self._expiry, self._later):
            if timer is not None and timer.active():
                timer.cancel()
        self._expiry = self._later = None
        for entry in list(self._open):
            self._fail(entry, HubUnavailable(self._hub, "this shard is stopping"))
        self._open.clear()
        self._unsent.clear()
        self._returned.clear()
        self._put_off.clear()

    def answered(self, entry: Entry, failure: Failure | Exception | None, reply: Any = None) -> None:
        """The connection has a reply for an entry, or will never have one."""
        self._in_flight -= 1
        is_asked, entry.is_asked = entry.is_asked, False
        is_kept = entry.options.history is not None
        if is_kept:
            last = self._last_asked if is_asked else self._last
            if last.get(entry.key) is entry:
                del last[entry.key]
        if entry.state == DONE:
            return
        if failure is None:
            if entry.options.fence is not None and reply.startswith(REFUSED):
                self._fail(entry, fenced(entry.key, reply, entry.is_unsure and not entry.is_told_again()))
                return
            position = _position(reply) if entry.keys and reply else None
            if is_kept and self._limits.min_replicas:
                entry.state = KEPT
                entry.position = position
            else:
                self._succeed(entry, position)
            return
        error = failure.value if isinstance(failure, Failure) else failure
        if entry.kind != KIND_PUBLICATION and not (isinstance(error, ReplyError) and error.is_refusal):
            self._fail(entry, HubUnavailable(self._hub, f"{error}; it may not have been told"))
        elif isinstance(error, LinkLost):
            self._came_back(entry, is_asked)
        elif isinstance(error, ReplyError) and error.code in ELSEWHERE:
            self._is_elsewhere(entry, error)
        elif isinstance(error, ReplyError) and (error.is_later or error.code in NOT_NOW):
            self._commands.forget()
            if entry.is_unsure and not entry.is_told_again():
                self._fail(entry, HubUnavailable(self._hub, f"{error}; whether it was taken is unknown"))
            else:
                entry.state = WAITING
                if not is_kept:
                    entry.is_unsure = False  # the result of the first try decides, whatever the sequence
                self._counters.publish_retries += 1
                self._put_off.append(entry)
            self._soon()
        elif isinstance(error, ReplyError) and error.code == UNDECIDED:
            self._fail(entry, HubUnavailable(self._hub, f"whether it was taken is unknown: {error}"))
        elif isinstance(error, ReplyError) and error.code in TEMPORARY:
            self._fail(entry, HubUnavailable(self._hub, str(error)))
        else:
            self._fail(entry, HubRefused(self._hub, str(error)))

    def _came_back(self, entry: Entry, is_asked: bool = False) -> None:
        """Its connection broke, and with it what there was to know of its outcome."""
        entry.state = WAITING
        entry.is_unsure = True
        self._counters.publish_retries += 1
        if is_asked:
            self._put_off.append(entry)
            self._soon()
        else:
            self._returned.append(entry)

    def _succeed(self, entry: Entry, position: Position | None) -> None:
        self._close(entry)
        if entry.kind == KIND_PUBLICATION:
            self._counters.published += 1
        entry.result.callback(position)

    def _replicas_of(self, connection: CommandProtocol) -> Replicas[Entry]:
        is_own = connection is self._connection
        return Replicas(
            self._clock,
            connection,
            self._limits.min_replicas,
            self._limits.wait_seconds,
            is_kept=Entry.is_kept,
            done=lambda entry: self._succeed(entry, entry.position),
            counted=Entry.counted,
            lost=lambda entry: self._came_back(entry, not is_own),
            refused=lambda entry, why: self._fail(entry, HubRefused(self._hub, why)),
        )

    def _send(self, connection: CommandProtocol, entry: Entry) -> None:
        if not entry.sequence and entry.kind == KIND_PUBLICATION:
            entry.sequence = next(self._sequences)
        entry.state = SENT
        self._in_flight += 1
        if entry.options.history is not None:
            before = self._last.get(entry.key)
            self._last[entry.key] = entry
            self._commands.submit_kept(connection, entry, before)
            if self._replicas is not None:
                self._replicas.sent(entry)
        else:
            self._commands.submit(connection, entry)

    def _send_waiting(self) -> None:
        while self._unsent and self._connection is not None and self._later is None and not self._holds:
            entry = self._unsent.popleft()
            if entry.state == WAITING:
                self._send(self._connection, entry)

    def _ask_again(self) -> None:
        self._later = None
        if self._in_flight:
            # Wait for all answers, lest one that is put off only now is overtaken by those made since.
            self._later = self._clock.callLater(LATER_SECONDS, self._ask_again)
            return
        put_off = sorted(self._put_off, key=Entry.number)
        for entry in put_off:
            if not entry.is_unsure:
                entry.sequence = 0
        self._unsent.extendleft(reversed(put_off))
        self._put_off.clear()
        self._send_waiting()

    def _expire(self) -> None:
        now = self._clock.seconds()
        while self._open and self._open[0].deadline <= now:
            entry = self._open[0]
            seconds = f"for {self._limits.publish_seconds:g} s"
            if entry.state == KEPT:
                self._counters.publish_unreplicated += 1
                count = f"{entry.replicas} of {self._limits.min_replicas}"
                why = f"it is kept, but {seconds} only {count} replicas have had it"
            else:
                why = f"{'it has not answered' if entry.state == SENT else 'it is away'} {seconds}"
            self._fail(entry, HubUnavailable(self._hub, why))
        # In a long outage nothing else would take them away.
        while self._unsent and self._unsent[0].state == DONE:
            self._unsent.popleft()
        self._expiry = None
        if self._open:
            self._expiry = self._clock.callLater(self._open[0].deadline - now, self._expire)

    def _close(self, entry: Entry) -> None:
        entry.state = DONE
        self.room.gives(entry)
        # Entries are answered in order, so this keeps the deque as short as what is really open.
        while self._open and self._open[0].state == DONE:
            self._open.popleft()

    def _fail(self, entry: Entry, error: HubError) -> None:
        if entry.state == DONE:
            return
        self._close(entry)
        self._counters.publish_failures += 1
        entry.result.errback(error)


def _position(reply: bytes) -> Position:
    return Position(reply[OFFSET_DIGITS:].decode(), int(reply[:OFFSET_DIGITS]))


def _nothing(position: Position | None) -> None:
    """An announcement has no position."""
