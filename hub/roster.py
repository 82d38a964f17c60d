"""Which shards are alive: the lease of a number, and the roster.

A shard number is a lease in Redis, ``PREFIX:shard:N``, whose value is the holder's identity. It lives for
``LEASE_SECONDS`` and is renewed with every heartbeat, so the number of a killed shard is free again
within that time; at once, if the claimant runs on the same machine and can see that the process is gone.

The heartbeat renews the lease and writes the shard's row of ``PREFIX:roster`` in one script, stamped
with the server's clock, so the clocks of the machines do not matter. A row older than
``DEAD_AFTER_SECONDS`` is not shown, one older than ``FORGET_SECONDS`` is deleted by whoever reads.

A shard whose lease vanished (expired in an outage, flushed) takes it again; one whose number another
process holds by now is told so, and must stop.

The same script keeps the shard's life in ``PREFIX:lives``, and gives back what became of it and which others
have not been heard of: a ``Beat``, which ``lives`` acts on.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Incumbent, Load, ShardIdentity, ShardInfo
from spread.hub.errors import HubError, HubRefused, HubUnavailable, LeaseTaken, LinkLost, ReplyError
from spread.hub.keys import ShardKeys
from spread.hub.link import CommandProtocol, Link
from spread.hub.process import is_gone
from spread.hub.reactor import Clock, Timer
from spread.hub.scripts import run_script

__all__ = [
    "HEARTBEAT_SECONDS",
    "LEASE_SECONDS",
    "LIFE_SECONDS",
    "SUSPECT_SECONDS",
    "Beat",
    "Life",
    "Roster",
]

LEASE_SECONDS = 8.0
HEARTBEAT_SECONDS = 2.0
DEAD_AFTER_SECONDS = 8.0
FORGET_SECONDS = 60.0
MAX_SHARD = 1023

SUSPECT_SECONDS = 4.0
"""A shard that was not heard of for so long, two heartbeats, is told to the others."""

MAX_SUSPECTS = 16
"""So many at a time; the next ones when these have been dealt with."""

LIFE_SECONDS = 3600
"""Lives and registers are forgotten when no shard has beaten for so long."""


class Life(IntEnum):
    """What a heartbeat found of the shard that sent it."""

    KNOWN = 0
    NEW = 1
    """It was not known: this is its first heartbeat, or Redis has lost what it knew."""
    REAPED = 2
    """It was taken for dead; others have told that its clients left, or were about to."""


class Beat(msgspec.Struct, frozen=True):
    """What a heartbeat gave."""

    sent_at: float
    """When it was sent, by this process's clock."""
    life: Life
    suspects: list[tuple[str, str]]
    """Incarnations of others that are silent, each with the time of its last heartbeat, in milliseconds of
    the server's clock as text; "0": it is known to be dead."""


class _Row(msgspec.Struct, frozen=True):
    identity: ShardIdentity
    load: Load


class Roster:
    """This shard's lease and its view of the others.

    :param prefix: of all keys; in a cluster a hash tag, ``{spread}`` say.
    :param beaten: called with what each heartbeat gave, but for one that lost the number.
    """

    log = Logger("spread.hub.roster")

    def __init__(
        self,
        clock: Clock,
        link: Link,
        prefix: str,
        beaten: Callable[[Beat], None] = lambda beat: None,
    ) -> None:
        self._clock = clock
        self._link = link
        self._keys = ShardKeys(prefix)
        self._beaten = beaten
        self._identity: ShardIdentity | None = None
        self._shard: int | None = None
        self._load: Callable[[], Load] | None = None
        self._lost: Callable[[Incumbent], None] | None = None
        self._timer: Timer | None = None
        self._beaten_at = 0.0
        self._cut_at = float("-inf")

    @property
    def is_renewed(self) -> bool:
        """The lease was renewed recently enough that no one else can have taken the number."""
        return self._shard is not None and self._clock.seconds() - self._beaten_at < LEASE_SECONDS

    async def claim(self, shard: int | None, identity: ShardIdentity) -> int:
        """See ``Hub.claim``."""
        self._identity = identity
        try:
            return await self._claim(shard, identity)
        except ReplyError as error:
            if error.is_later:
                raise HubUnavailable(self._link.name, str(error)) from error
            raise HubRefused(self._link.name, str(error)) from error

    async def _claim(self, shard: int | None, identity: ShardIdentity) -> int:
        if shard is not None:
            holder = await self._take(shard, identity)
            if holder is not None:
                raise LeaseTaken(shard, holder.host, holder.pid)
            return shard
        for number in range(MAX_SHARD + 1):
            if await self._take(number, identity) is None:
                return number
        raise HubUnavailable(self._link.name, f"all shard numbers up to {MAX_SHARD} are taken")

    async def _take(self, shard: int, identity: ShardIdentity) -> ShardIdentity | None:
        """``None`` when taken, else who holds it."""
        mine = msgspec.json.encode(identity)
        replaceable = gone = b""
        while True:
            asked_at = self._clock.seconds()
            held = await run_script(
                self._connection(),
                "lease_take",
                [self._keys.lease(shard), self._keys.lives],
                [mine, int(LEASE_SECONDS * 1000), replaceable, gone],
            )
            if held == mine:
                self._shard = shard
                self._beaten_at = asked_at
                return None
            holder = _identity_of(held)
            if held == replaceable or not is_gone(holder):
                return holder
            # Seen with our own eyes that the process is gone: no need to wait for its lease to end.
            replaceable, gone = held, holder.incarnation.encode()

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """See ``Hub.enter``."""
        self._load = load
        self._lost = lost
        self.beat()

    def beat(self) -> None:
        """Send a heartbeat now, and the next one ``HEARTBEAT_SECONDS`` later."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._load is None:
            return
        self._timer = self._clock.callLater(HEARTBEAT_SECONDS, self.beat)
        connection = self._link.protocol
        if connection is not None:
            sent = Deferred.fromCoroutine(self._beat(connection, self._load()))
            sent.addErrback(self._beat_failed, connection)

    async def _beat(self, connection: CommandProtocol, load: Load) -> None:
        assert self._identity is not None and self._shard is not None
        sent_at = self._clock.seconds()
        identity, keys = self._identity, self._keys
        row = msgspec.json.encode(_Row(identity, load))
        own = identity.incarnation
        holder, *rest = await run_script(
            connection,
            "heartbeat",
            [keys.lease(self._shard), keys.roster, keys.lives, keys.register(own), keys.reaping(own)],
            [
                msgspec.json.encode(identity),
                int(LEASE_SECONDS * 1000),
                self._shard,
                row,
                own.encode(),
                LIFE_SECONDS,
                int(SUSPECT_SECONDS * 1000),
                MAX_SUSPECTS,
            ],
        )
        if self._load is None:
            return  # left in the meantime
        if not holder:
            self._beaten_at = sent_at
            suspects = [
                (who.decode(errors="replace"), at.decode())
                for who, at in zip(rest[1::2], rest[2::2], strict=True)
            ]
            self._beaten(Beat(sent_at, Life(rest[0]), suspects))
            return
        lost, incumbent = self._lost, Incumbent(shard=self._shard, identity=_identity_of(holder))
        self.stop()
        self._shard = None
        if lost is not None:
            lost(incumbent)

    def _beat_failed(self, failure: Failure, connection: CommandProtocol) -> None:
        error = failure.value
        if isinstance(error, ReplyError) and error.code == "READONLY":
            # A demoted master still answers; only a new connection finds the new one. Where it finds the same
            # server, which the first beat tells at once, it stays until the next.
            now = self._clock.seconds()
            if now - self._cut_at >= HEARTBEAT_SECONDS:
                self._cut_at = now
                connection.cut("the server has become a replica")
        elif isinstance(error, ReplyError):
            self.log.error("heartbeat refused: {error}", error=error)
        elif not isinstance(error, LinkLost):
            self.log.failure("heartbeat", failure)

    async def leave(self) -> None:
        """Give back the lease and leave the roster, if the hub can be reached."""
        self.stop()
        connection = self._link.protocol
        if self._identity is None or self._shard is None or connection is None:
            return
        shard, self._shard = self._shard, None
        own = self._identity.incarnation
        try:
            await run_script(
                connection,
                "leave",
                [self._keys.lease(shard), self._keys.roster, self._keys.lives, self._keys.register(own)],
                [msgspec.json.encode(self._identity), shard, own.encode()],
            )
        except HubError as error:
            self.log.warn("the lease of shard {shard} runs out by itself: {error}", shard=shard, error=error)

    def stop(self) -> None:
        """No more heartbeats. Idempotent."""
        self._load = self._lost = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    async def read(self) -> list[ShardInfo]:
        """See ``Hub.roster``."""
        reply = await run_script(self._connection(), "roster", [self._keys.roster], [int(FORGET_SECONDS)])
        now = float(reply[0])
        shards = []
        for number, row in zip(reply[1::2], reply[2::2], strict=True):
            beaten_at, _, packed = row.partition(b" ")
            try:
                shard, age = int(number), max(0.0, now - float(beaten_at))
                parsed = msgspec.json.decode(packed, type=_Row)
            except (msgspec.DecodeError, ValueError) as error:
                self.log.warn(
                    "row {number} of the roster cannot be read: {error}", number=number, error=error
                )
                continue
            if age <= DEAD_AFTER_SECONDS:
                shards.append(
                    ShardInfo(shard=shard, identity=parsed.identity, load=parsed.load, age_seconds=age)
                )
        return sorted(shards, key=lambda info: info.shard)

    def _connection(self) -> CommandProtocol:
        connection = self._link.protocol
        if connection is None:
            reason = str(self._link.last_error) if self._link.last_error else "not connected"
            raise HubUnavailable(self._link.name, reason)
        return connection


def _identity_of(value: Any) -> ShardIdentity:
    try:
        return msgspec.json.decode(value, type=ShardIdentity)
    except (msgspec.DecodeError, TypeError):
        # Somebody else's key under our name: it is held, by we do not know whom.
        return ShardIdentity(incarnation="", host="unknown", pid=0, machine="", started="", version="")
