"""One publication in the journal, and the journal's bounds; what becomes of it is told in ``publish``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from spread.hub.api import PLAIN, HubCounters, Position
from spread.hub.envelope import KIND_PUBLICATION
from spread.hub.replicas import WAIT_SECONDS

__all__ = ["DONE", "KEPT", "SENT", "WAITING", "Answered", "Entry", "JournalLimits", "Room"]

WAITING, SENT, KEPT, DONE = "waiting", "sent", "kept", "done"


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """The bounds of the journal."""

    publish_seconds: float
    max_publications: int
    max_bytes: int
    min_replicas: int = 0
    """How many replicas must have what is kept before it is acknowledged."""
    wait_seconds: float = WAIT_SECONDS
    """How long one WAIT for them may block the connection; well below the time after which it is cut."""


class Room:
    """What a journal holds, and whether there is room for more.

    Journals of several servers count together, in the counters of their hub; but each may always fill its
    share, so that one whose server is away takes no room from the others. All of them together hold twice the
    limits at most.
    """

    def __init__(self, limits: JournalLimits, counters: HubCounters) -> None:
        self._limits = limits
        self._counters = counters
        self._publications = 0
        self._bytes = 0
        self.shares = 1
        """Journals that count together."""

    def is_full_for(self, entry: Entry) -> bool:
        """One more is too much."""
        limits, counters, shares = self._limits, self._counters, self.shares
        most, room = limits.max_publications, limits.max_bytes - entry.size
        are_many = counters.journal_publications >= most and self._publications * shares >= most
        return are_many or (counters.journal_bytes > room and self._bytes * shares > room)

    def takes(self, entry: Entry) -> None:
        """It is in the journal."""
        self._publications += 1
        self._bytes += entry.size
        self._counters.journal_publications += 1
        self._counters.journal_bytes += entry.size

    def gives(self, entry: Entry) -> None:
        """It is not any more."""
        self._publications -= 1
        self._bytes -= entry.size
        self._counters.journal_publications -= 1
        self._counters.journal_bytes -= entry.size


class Answered(Protocol):
    """The journal that an entry is in."""

    room: Room

    def answered(self, entry: Entry, failure: Any, reply: Any = None, /) -> None:
        """The connection has a reply for it, or will never have one."""


class Entry:
    """One publication, or announcement; itself the waiter for its reply: a Deferred fewer (1.4 µs) each."""

    __slots__ = (
        "data",
        "deadline",
        "format",
        "is_asked",
        "is_moved",
        "is_unsure",
        "journal",
        "key",
        "keys",
        "kind",
        "meta",
        "options",
        "position",
        "replicas",
        "result",
        "sequence",
        "session",
        "size",
        "state",
    )

    def __init__(
        self, journal: Answered, key: bytes, data: bytes, format: int, session: int, deadline: float
    ) -> None:
        self.journal = journal
        self.key = key
        self.data = data
        self.format = format
        self.session = session
        self.deadline = deadline
        self.sequence = 0
        self.is_unsure = False  # it was on a connection that broke
        self.is_moved = False  # it was sent to another server, or others may have been meanwhile
        self.position: Position | None = None  # while it is KEPT, and so many replicas have it
        self.replicas = 0
        self.is_asked = False  # it is on another group's connection
        self.state = WAITING
        self.kind = KIND_PUBLICATION
        self.meta = b""
        self.size = len(data)
        self.options = PLAIN
        self.keys: tuple[bytes, ...] = ()  # of the script that publishes it; none for PUBLISH
        self.result: Deferred[Position | None] = Deferred()

    def callback(self, reply: Any) -> None:
        self.journal.answered(self, None, reply)

    def errback(self, failure: Any) -> None:
        self.journal.answered(self, failure)

    def number(self) -> int:
        """Its sequence; 0 while it has none."""
        return self.sequence

    def is_told_again(self) -> bool:
        """At a second try the script tells what became of the first."""
        return self.options.history is not None or bool(self.options.idempotency_key)

    def is_kept(self) -> bool:
        """The server has it, and it is not acknowledged yet."""
        return self.state == KEPT

    def counted(self, replicas: int) -> None:
        """So many replicas have it."""
        self.replicas = replicas
