"""The hub: where shards meet. This module is the promise; ``memory`` and ``redis`` keep it.

Promises, whichever implementation is used:

1.  *Order.* All receivers of a channel, on every shard, get its publications in one order: the
    order in which the hub took them. A publisher's own shard receives them on the same road.
2.  *Acknowledged means taken.* ``publish`` fires when the hub has the publication. While the hub is
    away it waits in a bounded journal, and fails with ``HubUnavailable`` at the deadline.
3.  *No doubles.* A publication whose outcome is unknown (the connection broke after the write) is
    sent again; receivers drop what they already had.
4.  *Only interested shards hear* a channel: from its first subscriber here until some seconds after
    the last.
5.  *One number, one process.* A shard number is leased to one live process at a time.
6.  *A channel that keeps history is gapless.* Its publications have offsets 1, 2, 3 … within an epoch; a
    receiver gets offset n+1 only after n, or is told ``Broken`` when what lies between cannot be had.
7.  *A channel has one owner at most.* What is published, or saved, under an ownership that is over is refused
    with ``Fenced``, however late it arrives: the hub compares in the same step in which it takes. An owner's
    epoch is above those of all before it, as long as the hub keeps its data.

What is not promised: plain channels are at most once. While the link of a receiving shard is down it
misses what is published; the window is told to ``Receiver.missed``, never passed over in silence. Joins
and leaves are at most once too; those of a client are told in pairs, if at all, also when its shard dies or
the hub is away when it leaves. Presence outlives the hub: what is lost of it is told again.

Nothing here imports an implementation, Redis or a reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from spread.hub.ownership import MAX_STATE_BYTES, Owned, Ownership, Pulsing

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

__all__ = [
    "MAX_EXCLUDED",
    "MAX_STATE_BYTES",
    "PLAIN",
    "Ancestor",
    "Broken",
    "Channels",
    "ClientInfo",
    "Event",
    "Format",
    "History",
    "Hub",
    "HubCounters",
    "Incumbent",
    "Joined",
    "Left",
    "Load",
    "Ownership",
    "Position",
    "PresenceStats",
    "Publication",
    "PublishOptions",
    "Receiver",
    "ShardIdentity",
    "ShardInfo",
    "Stream",
    "check_excluded",
]


class Format(IntEnum):
    """How the bytes of a publication are to be read. The number is what travels between shards."""

    TEXT = 1
    """One message of the text protocol, exactly as received, line ending included."""
    JSON = 2
    """One JSON value, UTF-8."""
    BINARY = 3
    """Bytes without meaning to Spread."""


class ClientInfo(msgspec.Struct, frozen=True, gc=False):
    """Who published, joined, left, or is present."""

    user: str
    """"" for an anonymous user."""
    client: str
    """The id of the connection."""
    conn_info: bytes = b""
    """What the connection's token says of the client, as opaque bytes; usually JSON."""
    chan_info: bytes = b""
    """The same of the subscription's token."""


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in the stream of a channel that keeps history."""

    epoch: str
    """Random text of 8 letters, drawn when the stream comes into being; another epoch is another stream."""
    offset: int
    """That of the newest publication before this place; 0 before the first."""


class History(msgspec.Struct, frozen=True, gc=False):
    """What a channel keeps. The same for all publications of a channel, or the last one's is in force."""

    size: int
    """Publications."""
    ttl_seconds: int
    """All are forgotten when none was published for so long."""
    meta_ttl_seconds: int
    """Epoch and top offset are kept for so long after the last use. Longer than ``ttl_seconds``."""


class Publication(msgspec.Struct, frozen=True, gc=False):
    """One message in a channel.

    A msgspec struct, because one is made for every message a shard receives: 0.15 µs, against
    1.1 µs for a frozen dataclass.
    """

    data: bytes
    format: int
    """A ``Format``; left as the plain number, since making the enum costs more than comparing it."""
    shard: bytes
    """The incarnation (8 bytes) of the shard that published."""
    session: int
    """The number of the publishing session on that shard, which does not get it back; 0: everybody does."""
    offset: int = 0
    """1, 2, 3 … in a channel that keeps history; 0 elsewhere."""
    epoch: str = ""
    """Of the offset; "" without one."""
    info: ClientInfo | None = None
    """Set when a client of the Centrifuge protocol published."""
    tags: dict[str, str] | None = None
    delta: bool = False
    """Subscribers may be sent the difference to the publication before."""
    exclude: tuple[str, ...] = ()
    """Ids of clients that do not get it, neither now nor from the history."""


class Joined(msgspec.Struct, frozen=True, gc=False):
    """Someone came into a channel."""

    info: ClientInfo


class Left(msgspec.Struct, frozen=True, gc=False):
    """Someone left a channel."""

    info: ClientInfo


class Broken(msgspec.Struct, frozen=True, gc=False):
    """Publications of a channel are missing here and cannot be had: who follows positions must recover.

    What comes after it continues from ``position``.
    """

    position: Position


Event = Publication | Joined | Left | Broken
"""What a receiver gets of a channel, in one order."""


MAX_EXCLUDED = 64
"""Clients that one publication may exclude: they are part of each copy of it."""


class PublishOptions(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a publication carries besides its data, and how it is kept."""

    history: History | None = None
    """``None``: it is not kept, and has no offset."""
    info: ClientInfo | None = None
    tags: dict[str, str] | None = None
    delta: bool = False
    idempotency_key: str = ""
    """A second publication of the channel with the same key within 300 s is not made; it gets the position
    of the first."""
    version: int = 0
    """Not 0, with ``history``: dropped unless it is above the version of the last one of this
    ``version_epoch``; its position is then that of the top."""
    version_epoch: str = ""
    exclude: tuple[str, ...] = ()
    """Ids of clients that do not get it, on whatever shard they are; ``MAX_EXCLUDED`` at most. Others that
    read what is kept of the channel (the server API, apps) see it."""
    fence: Ownership | None = None
    """Publish only if this is who owns the channel. One that was taken in time is not refused when it is sent
    again; nor is one whose idempotency key is known."""


PLAIN = PublishOptions()


def check_excluded(exclude: tuple[str, ...]) -> None:
    """:raises ValueError: these are more than a publication may exclude."""
    if len(exclude) > MAX_EXCLUDED:
        raise ValueError(f"{len(exclude)} clients are excluded; at most {MAX_EXCLUDED} may be")


class Ancestor(msgspec.Struct, frozen=True, gc=False):
    """An epoch that has ended since a copy of the data took over, with offsets that go on."""

    offset: int
    """Up to here it is the same stream."""
    is_whole: bool
    """What was acknowledged in it is known to be there; else some of it may be lost."""


class Stream(msgspec.Struct, frozen=True):
    """What a channel's history holds, as asked for."""

    position: Position
    """Of the newest publication, whatever was asked for."""
    publications: list[Publication]
    before: dict[str, Ancestor] = {}
    """Epochs before that of ``position``."""

    def continues(self, known: Position) -> bool:
        """Who was there, in whatever epoch that was, misses nothing but what comes after it here."""
        if known.epoch in ("", self.position.epoch):
            return True
        ancestor = self.before.get(known.epoch)
        return ancestor is not None and ancestor.is_whole and known.offset <= ancestor.offset


class PresenceStats(msgspec.Struct, frozen=True, gc=False):
    """How many are in a channel."""

    num_clients: int
    num_users: int
    """Different user ids; all anonymous ones are one."""


class Receiver(Protocol):
    """What a shard gives its hub: where publications go. Called on the reactor's thread."""

    def received(self, channel: str, event: Event) -> None:
        """Something happened in a subscribed channel, in hub order. Must only queue it."""
        ...

    def read_done(self) -> None:
        """All events of one read from the hub have been handed over."""
        ...

    def pressed(self, channel: str) -> None:
        """Receivers of a channel, on some shard, can hardly keep up; see ``Hub.press``."""
        ...

    def missed(self, seconds: float) -> None:
        """The link is live again after having been away: plain channels may have lost publications.

        :param seconds: since the lost connection was last heard.
        """
        ...

    def asked(self, question: bytes) -> Deferred[bytes]:
        """A question of some shard, perhaps this one; see ``Hub.ask``. Questions of one shard come in order.

        A failure is logged by the hub and answered as b"".
        """
        ...


class ShardIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which process a shard is; what a lease stores, and what a refused claimant is told."""

    incarnation: str
    """16 hex digits, drawn at random when the process starts."""
    host: str
    pid: int
    machine: str
    """What tells whether a pid can be looked up from here: boot and pid namespace; "" if unknown."""
    started: str
    """Start time of the process in the kernel's own unit, so that a reused pid is not mistaken for it."""
    version: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a shard tells of itself with each heartbeat."""

    clients: int
    channels: int
    addresses: dict[str, str]
    """Service name (``text``, ``http``, ``json``, ``ops``) to ``host:port``."""
    ready: bool
    users: int = 0
    """Different user ids among the clients."""
    subscriptions: int = 0
    """Of all clients together."""
    uptime_seconds: int = 0
    app: str = ""
    """The team's app and its version, ``game:Game 3f2a90c41b7d``; "" if the shard runs none."""


class ShardInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the roster: one live shard."""

    shard: int
    identity: ShardIdentity
    load: Load
    age_seconds: float
    """Since its last heartbeat, by the hub's clock."""


class Incumbent(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a shard number that was asked for."""

    shard: int
    identity: ShardIdentity


class HubCounters(msgspec.Struct, kw_only=True):
    """What a hub counts for the metrics; plain numbers that only grow, but for the last six."""

    published: int = 0
    publish_retries: int = 0
    publish_failures: int = 0
    publish_unreplicated: int = 0
    received: int = 0
    duplicates: int = 0
    malformed: int = 0
    unknown_versions: int = 0
    reconnects: int = 0
    deaf_links: int = 0
    missed_windows: int = 0
    missed_seconds: float = 0.0
    repaired: int = 0
    broken: int = 0
    questions: int = 0
    unanswered: int = 0
    presence_restored: int = 0
    removals_dropped: int = 0
    leaves_of_dead_shards: int = 0
    shards_reaped: int = 0
    redirects: int = 0
    refreshes: int = 0
    subscribed_channels: int = 0
    followed_channels: int = 0
    journal_publications: int = 0
    journal_bytes: int = 0
    groups: int = 0
    servers_away: int = 0


class Channels(Owned, Protocol):
    """What a hub does for one channel or another; about its owner: see ``ownership``."""

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """Publish to a channel; gives its position if the channel keeps history. Calls are taken in the
        order they are made.

        :raises ValueError: at once: it excludes more than ``MAX_EXCLUDED``.
        :raises MessageTooLarge: above the hub's maximum; nothing was sent.
        :raises JournalFull: the hub is away and too much waits already.
        :raises HubUnavailable: the deadline passed. The outcome may be unknown.
        :raises Fenced: ``options.fence`` does not own the channel (any more).
        """
        ...

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """Hear a channel. Fires once every later event will be heard.

        With ``history`` it gives the position from which on the receiver gets every publication: the next
        one handed to ``Receiver.received`` is the one after it. (What was handed over before that may still
        wait in the receiver's own queue.)

        Subscribing again before the Deferred of the first call has fired gives one that fires with it.
        While the hub is away it waits, without limit of time: who waits must have a deadline.

        :raises HubRefused: the hub's ACL forbids the channel.
        :raises HubUnavailable: unsubscribed before it was heard, or the hub was stopped.
        """
        ...

    def unsubscribe(self, channel: str) -> None:
        """Stop hearing a channel, some seconds from now, unless it is subscribed again before."""
        ...

    def press(self, channel: str) -> None:
        """Tell all shards that hear a channel that some of its receivers can hardly keep up.

        A hint, sent at most once and on no account waited for.
        """
        ...

    # -- history -------------------------------------------------------------------------------------------

    def history(
        self,
        channel: str,
        history: History,
        *,
        since: Position | None = None,
        limit: int = 0,
        reverse: bool = False,
    ) -> Deferred[Stream]:
        """What is kept of a channel; the epoch comes into being with the first call.

        :param since: strictly after this offset, or before it with ``reverse``. Its epoch is not compared:
            the caller does, with that of the answer.
        :param limit: publications at most; 0: only the position, -1: all.
        :param reverse: from the newest down.
        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def remove_history(self, channel: str) -> Deferred[None]:
        """Forget what a channel has kept; epoch and offsets go on.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    # -- presence ------------------------------------------------------------------------------------------

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
        """``info.client`` is in the channel, until ``ttl_seconds`` from now. Again: it still is.

        Until it is removed it is told again by the hub, whatever came of this call, when the hub has been
        away or has lost what it knew. When this shard dies the others remove it.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """It is not any more. Idempotent.

        :raises HubUnavailable: the hub did not answer. It is removed when the hub is back, unless it has been
            added again.
        """
        ...

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """Who is in a channel, on all shards, by client id.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """How many are in a channel, on all shards.

        :raises HubUnavailable: the hub did not answer.
        """
        ...

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """Tell all subscribers of a channel, at most once, in order with what this shard publishes.

        A shard that dies is told of by the others: they announce, once, that those have left whom it had
        announced and who had not left.

        :raises HubUnavailable: the hub is away; it was not told. When the hub is back, a join is announced
            of a client that is still there, and a leave of one whose join was.
        """
        ...


class Hub(Channels, Pulsing, Protocol):
    """One shard's access to the hub.

    Not thread-safe: every method is called on the reactor's thread, and every Deferred fires there.
    """

    @property
    def name(self) -> str:
        """The hub's address for people and logs, without credentials."""
        ...

    @property
    def is_live(self) -> bool:
        """Commands are answered and subscriptions are being heard."""
        ...

    @property
    def counters(self) -> HubCounters:
        """The live counters; read them, do not keep a copy."""
        ...

    def start(self, receiver: Receiver) -> Deferred[None]:
        """Connect. After a failure only ``stop`` may follow.

        :raises HubUnavailable: not reached within the configured start time.
        :raises HubRefused: credentials or permissions are wrong.
        :raises HubMisconfigured: the address cannot work.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Give back the lease, close all connections. Waiting publications fail. Idempotent."""
        ...

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """Lease a shard number; ``None`` asks for the lowest free one.

        A number whose holder was killed is free again within 10 s, or at once where this process can
        see for itself that the holder is gone.

        :raises LeaseTaken: a live process holds it.
        :raises HubUnavailable: the hub did not answer.
        :raises HubRefused: the credentials do not allow it.
        """
        ...

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """Start the heartbeats that renew the lease and keep this shard's row in the roster.

        :param load: asked at each heartbeat.
        :param lost: called once, when another process has taken the number; the shard must stop.
        """
        ...

    @property
    def holds_lease(self) -> bool:
        """The lease was renewed recently enough that nobody else can have taken the number."""
        ...

    def roster(self) -> Deferred[list[ShardInfo]]:
        """The live shards, by number."""
        ...

    def next_client(self) -> Deferred[int]:
        """Count one more client of the whole cluster; gives its number, from 1."""
        ...

    def pause(self) -> None:
        """Ask for no more publications; a few that were already read may still come."""
        ...

    def resume(self) -> None:
        """Take publications again."""
        ...

    # -- between shards ------------------------------------------------------------------------------------

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """Put a question to all live shards, this one included, and gather their answers; questions of this
        shard arrive in the order they are asked.

        :param shard: the incarnation of the only one to ask.
        :raises ShardUnknown: that one does not live.
        :raises HubUnavailable: the hub is away, or not all have answered within ``ask_seconds``.
        """
        ...
