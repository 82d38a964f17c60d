"""Which shards have died, and what is done about it: their clients are told to have left.

A shard's life is its entry in ``PREFIX:lives``, which its heartbeats renew. Three things end it:

    it leaves in order                          the entry is deleted
    its number is taken by a process that sees  the entry gets score 0; who hears of that acts at once,
    that it is gone                             mostly the one that has taken the number
    it is silent                                after 4 s the heartbeats of the others name it; who has seen
                                                the same entry for 4 s more, by a clock of its own, acts

After an outage of Redis all lives look old, and the other shards need some seconds to be back. So nobody
judges by silence unless its own heartbeats were answered for ``CALM_SECONDS`` without a break, on one
connection.

To act is to reap: under a lock (``PREFIX:reaping:INCARNATION``, 10 s, renewed with each step) some entries at
a time are taken out of the dead shard's register. Whoever has taken an entry removes the client's presence
and publishes its Left, before it takes the next ones. So no Left is published twice; if the reaper dies too,
those of one step are lost, and another goes on with the rest when the lock has run out. At the end the life
is deleted, and a mark stays. A shard that is alive after all, having stood still, takes lock or mark away
with its next heartbeat, which ends the reaping, and tells its clients again (``register``).
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import HubCounters, Left
from spread.hub.errors import HubError, LinkLost
from spread.hub.keys import ShardKeys
from spread.hub.link import LAST_DELAY_SECONDS, CommandProtocol, Link
from spread.hub.reactor import Clock
from spread.hub.register import Register, Told, unpack_entry
from spread.hub.roster import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, LIFE_SECONDS, SUSPECT_SECONDS, Beat
from spread.hub.scripts import run_script

__all__ = ["CALM_SECONDS", "STEP", "Lives"]

SEEN_SECONDS = DEAD_AFTER_SECONDS - SUSPECT_SECONDS
"""How long a suspect must be seen without a new heartbeat."""

CALM_SECONDS = DEAD_AFTER_SECONDS + LAST_DELAY_SECONDS + 2.0
"""How long this shard's heartbeats must have been answered before it judges others."""

BREAK_SECONDS = 2.5 * HEARTBEAT_SECONDS
"""More than this between two answered heartbeats is a break."""

LOCK_SECONDS = 10.0

STEP = 100
"""Entries taken at a time. Redis may give some more: it keeps a small hash in one piece, of up to 512."""

REST_SECONDS = 0.01
"""Between two steps: a shard with 10 000 clients is not all that this one has to do."""


class Lives:
    """Those of the other shards of one hub; and the register of this one, which ends up like theirs.

    :param link: to the server that has the keys of shards.
    :param channels: where presence is removed and leaves are published.
    """

    log = Logger("spread.hub.lives")

    def __init__(
        self,
        clock: Clock,
        link: Link,
        prefix: str,
        incarnation: str,
        counters: HubCounters,
        channels: Told,
    ) -> None:
        self._clock = clock
        self._link = link
        self._keys = ShardKeys(prefix)
        self._incarnation = incarnation
        self._counters = counters
        self._channels = channels
        self.register = Register(clock, link, self._keys, incarnation, counters, channels)
        self._calm_since = float("-inf")
        self._beaten_at = float("-inf")
        self._connection: CommandProtocol | None = None
        # Silent shards: the score they were seen with, and since when.
        self._seen: dict[str, tuple[str, float]] = {}
        self._reaping: Deferred[None] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Judge no more; another goes on with a reaping that is on. Idempotent."""
        self._is_stopped = True
        self._seen.clear()
        if self._reaping is not None:
            self._reaping.cancel()
        self.register.stop()

    def beaten(self, beat: Beat) -> None:
        """A heartbeat of this shard was answered."""
        if self._is_stopped:
            return
        now = self._clock.seconds()
        if self._link.protocol is not self._connection or now - self._beaten_at > BREAK_SECONDS:
            self._connection = self._link.protocol
            self._calm_since = now
            self._seen.clear()
        self._beaten_at = now
        self.register.beaten(beat.life, beat.sent_at)
        self._judge(beat, now)

    def _judge(self, beat: Beat, now: float) -> None:
        is_calm = now - self._calm_since >= CALM_SECONDS
        before, self._seen = self._seen, {}
        dead = []
        for incarnation, score in beat.suspects:
            if score == "0":
                dead.append((incarnation, score))
                continue
            seen = before.get(incarnation, ("", 0.0))
            since = seen[1] if seen[0] == score else now
            self._seen[incarnation] = (score, since)
            if is_calm and now - since >= SEEN_SECONDS:
                dead.append((incarnation, score))
        if dead and self._reaping is None and self._connection is not None:
            self._reaping = Deferred.fromCoroutine(self._reap_all(self._connection, dead))
            self._reaping.addBoth(self._reaped)

    def _reaped(self, outcome: Any) -> None:
        self._reaping = None
        if not isinstance(outcome, Failure) or outcome.check(LinkLost, CancelledError):
            return  # another goes on when the lock has run out
        if outcome.check(HubError):
            self.log.warn("clearing up after a dead shard: {why}", why=outcome.getErrorMessage())
        else:
            self.log.failure("clearing up after a dead shard", outcome)

    async def _reap_all(self, connection: CommandProtocol, dead: list[tuple[str, str]]) -> None:
        for incarnation, score in dead:
            reaping = self._keys.reaping(incarnation)
            is_ours = await run_script(
                connection,
                "reap_begin",
                [self._keys.lives, reaping],
                [incarnation.encode(), score.encode(), self._incarnation.encode(), int(LOCK_SECONDS * 1000)],
            )
            if is_ours:
                await self._reap(connection, incarnation)

    async def _reap(self, connection: CommandProtocol, incarnation: str) -> None:
        keys = self._keys
        cursor = b"0"
        taken = 0
        while True:
            reply = await run_script(
                connection,
                "reap_step",
                [keys.lives, keys.reaping(incarnation), keys.register(incarnation)],
                [
                    incarnation.encode(),
                    self._incarnation.encode(),
                    int(LOCK_SECONDS * 1000),
                    cursor,
                    STEP,
                    LIFE_SECONDS,
                ],
            )
            if not reply:
                self.log.info(
                    "shard {incarnation} lives, or another clears up after it", incarnation=incarnation
                )
                return
            cursor, *entries = reply
            if cursor == b"done":
                self._counters.shards_reaped += 1
                self.log.info(
                    "shard {incarnation} is dead; its {count} clients in channels have left",
                    incarnation=incarnation,
                    count=taken,
                )
                return
            taken += len(entries) // 2
            told = []
            for field, value in zip(entries[::2], entries[1::2], strict=True):
                told += self._tell(field, value)
            await gatherResults(told)
            await deferLater(cast(Any, self._clock), REST_SECONDS)

    def _tell(self, field: bytes, value: bytes) -> list[Deferred[None]]:
        """What a dead shard would have told of a client; none of what this gives fails."""
        try:
            channel, info, is_present, is_joined = unpack_entry(field, value)
        except ValueError as error:
            self._counters.malformed += 1
            self.log.warn("an entry of a dead shard's register cannot be read: {error}", error=error)
            return []
        told = []
        if is_present:
            told.append(self._channels.remove_presence(channel, info.client))
        if is_joined:
            left = self._channels.announce(channel, Left(info))
            told.append(left.addCallback(self._count))
        for each in told:
            each.addErrback(self._not_told)
        return told

    def _count(self, _: None) -> None:
        self._counters.leaves_of_dead_shards += 1

    def _not_told(self, failure: Failure) -> None:
        failure.trap(HubError)
        self.log.debug("of a client of a dead shard: {why}", why=failure.value)
