"""Which copy of the data a server has: after a failover it may lack what another one had acknowledged.

Redis replicates asynchronously. A replica that is promoted, and a server that starts from a snapshot, may be
behind what was acknowledged, and then gives the same offsets to other publications. So each copy has a
*generation*, which all shards read from the server itself (``lineage.lua``): it stays the same when a server
restarts from its append-only file, and is another one after a promotion or a start from a snapshot. Scripts
that write or read a channel are given it; a channel that was last used under another generation gets another
epoch, and its offsets go on.

The generation is read as the last step of the handshake, and again every ``CHECK_SECONDS``, since a server
may be demoted without closing a connection. The same look finds

*   a server that has become a replica: the commands link is cut;
*   two links that lead to two servers: both are cut, once for each pair of servers;
*   with Sentinels, a master that is not the master any more for most of them, though it still answers, since
    it is cut off from them but not from this shard: both are cut.

In a cluster a channel may come from another group, whose generation it then bears. So there a group remembers
its own generations, the last 25, and a channel gets another epoch only if it bears one of these.

Where an ACL forbids INFO or scripts there is no generation: nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.epochs import drawn_epoch
from spread.hub.errors import HubError, HubUnavailable, ReplyError
from spread.hub.link import CommandProtocol, Link
from spread.hub.reactor import Clock, Timer
from spread.hub.scripts import run_script

__all__ = ["CHECK_SECONDS", "Lineage", "Moving"]

CHECK_SECONDS = 2.0
"""How often the server is asked who it is."""


ELSEWHERE = frozenset({"MOVED", "ASK", "CROSSSLOT"})
"""Codes that mean: the slot of the key has moved; the next connection names another key."""


class Moving(Protocol):
    """An endpoint that may lead to another server than before."""

    def elsewhere(self) -> Deferred[str]:
        """Where it would lead now, if that is another server than the one it led to last; else ""."""
        ...


class Lineage:
    """Of one server, for both links to it.

    :param key: where the generation is kept; asked for each connection.
    :param endpoint: asked whether it leads elsewhere, if it can tell.
    :param is_cluster: the server is one of several between which channels move.
    """

    log = Logger("spread.hub.lineage")

    def __init__(
        self,
        clock: Clock,
        key: Callable[[], bytes],
        commands: Link,
        hearing: Link,
        endpoint: object,
        is_cluster: bool = False,
    ) -> None:
        self._is_cluster = is_cluster
        self._clock = clock
        self._key_of = key
        self._key = b""
        self._commands = commands
        self._hearing = hearing
        self._elsewhere = getattr(endpoint, "elsewhere", None)
        self._timer: Timer | None = None
        self._replication = b""
        self._generation = b""
        self._cut_for: set[bytes] = set()
        self._is_told = False

    async def introduce(self, connection: CommandProtocol) -> None:
        """The last step of the handshake of a connection for commands.

        :raises ReplyError: the server cannot answer now.
        """
        self._key = self._key_of()
        if await self._learn(connection) not in (b"master", b""):
            # It takes nothing as long as it is a replica. Once it is promoted, channels begin new epochs.
            connection.generation = drawn_epoch()

    async def introduce_hearing(self, connection: CommandProtocol) -> None:
        """A step of the handshake of a connection that subscribes."""
        self._key = self._key_of()
        await self._learn(connection)

    def watch(self) -> None:
        """The commands link is up."""
        self.stop()
        self._timer = self._clock.callLater(CHECK_SECONDS, self._check)

    def stop(self) -> None:
        """It is down. Idempotent."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    async def _learn(self, connection: CommandProtocol) -> bytes:
        """Gives the role; b"" if it may not be known."""
        # Of another connection to the same server: it may have been told to forget all keys meanwhile.
        known = connection.generation[1:9] if self._is_cluster else connection.generation
        known = known or self._generation
        arguments: list[bytes | int] = [drawn_epoch(), self._replication, known]
        if self._is_cluster:
            arguments.append(b"1")
        try:
            told = await run_script(connection, "lineage", [self._key], arguments, follow=False)
        except ReplyError as error:
            if error.code in ELSEWHERE:
                raise HubUnavailable(self._commands.name, str(error)) from error
            if error.is_later:
                raise
            told = [b"", b"", b"", b""]
        generation, replication, run, role, *before = told
        if not role and not self._is_told:
            self._is_told = True
            self.log.warn(
                "{hub} may not be asked with INFO what became of it: what a failover loses is not told",
                hub=self._commands.name,
            )
        connection.server_run = run
        if generation:
            connection.generation = b"@" + generation + before[0] if self._is_cluster else generation
            self._generation = generation
            self._replication = replication
        return bytes(role)

    def _check(self) -> None:
        self._timer = self._clock.callLater(CHECK_SECONDS, self._check)
        connection = self._commands.protocol
        if connection is not None:
            checking = Deferred.fromCoroutine(self._look(connection))
            checking.addErrback(self._not_told)

    async def _look(self, connection: CommandProtocol) -> None:
        role = await self._learn(connection)
        if role not in (b"master", b""):
            connection.cut("the server has become a replica")
            return
        hearing = self._hearing.protocol
        runs = connection.server_run, hearing.server_run if hearing is not None else b""
        if all(runs) and runs[0] != runs[1]:
            pair = b" ".join(sorted(runs))
            if pair not in self._cut_for:
                # Once only: a proxy may answer for several servers.
                self._cut_for = {pair}
                self._cut(connection, hearing, "publications come from another server than commands go to")
                return
        if self._elsewhere is not None and (place := await self._elsewhere()):
            self._cut(connection, self._hearing.protocol, f"the master is {place}, say the Sentinels")

    def _cut(self, connection: CommandProtocol, hearing: CommandProtocol | None, why: str) -> None:
        connection.cut(why)
        if hearing is not None:
            hearing.cut(why)

    def _not_told(self, failure: Failure) -> None:
        # The link's own deadline, and the Sentinels' own state, are looked after elsewhere.
        if not failure.check(HubError):
            self.log.failure("who the server is", failure)
