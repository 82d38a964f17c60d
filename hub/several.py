"""One hub of several plain servers, each with a part of the channels; what happens to one hurts only those.

Each server is a whole hub of its own for its channels (``redis.RedisHub``): links, journal, subscriptions,
presence, the register of this shard's clients, lives, and so the clearing up after dead shards.
``rendezvous`` says where a channel is, from the names of the servers: their URLs without credentials, unless
they are given names. So all shards must name the same servers, and name them alike, in whatever order.

What belongs to the shard as a whole is wherever it can be:

    lease and roster    on every server. A number is claimed on all that answer, in their order, so that of
                        two claimants one meets the other; on those that come later as soon as they are
                        there. It is held as long as one server renews it
    pulses              on every server; who lives by one of them does. One that has not answered in a quarter
                        of a pulse's time is not waited for
    questions           go through the first server that is live
    the greeting's      of the first server; while that is away, of the next one, which goes on from where it
    counter             stands itself

The hub is live while half of its servers are: the channels of the others wait, and fail as temporary, but
clients of the rest must not be sent away for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import HubCounters, Incumbent, Load, Receiver, ShardIdentity, ShardInfo
from spread.hub.errors import HubError, HubMisconfigured, HubUnavailable, LeaseTaken
from spread.hub.reactor import Clock
from spread.hub.redis import RedisHub
from spread.hub.rendezvous import Rendezvous
from spread.hub.roster import HEARTBEAT_SECONDS, LEASE_SECONDS, MAX_SHARD
from spread.hub.routed import Routed

__all__ = ["SeveralHub"]

CONTEST_SECONDS = LEASE_SECONDS + HEARTBEAT_SECONDS
"""A server that comes late may remember who held the number before; for so long, if that one is gone."""


class _Server:
    """One of the servers, and whether the number is claimed there."""

    def __init__(self, hub: RedisHub) -> None:
        self.hub = hub
        self.is_claimed = False
        self.is_claiming = False


class SeveralHub(Routed):
    """See ``api.Hub`` for the promises; those of a channel are its server's.

    :param hubs: two or more, with different labels, which share their counters.
    """

    log = Logger("spread.hub.several")

    def __init__(self, reactor: Clock, hubs: Sequence[RedisHub], counters: HubCounters) -> None:
        self.name = ",".join(hub.name for hub in hubs)
        self.counters = counters
        """See ``api.Hub``; of all servers together."""
        self._reactor = reactor
        self._servers = [_Server(hub) for hub in hubs]
        self._hubs = list(hubs)
        self._place = Rendezvous([hub.label for hub in hubs]).place
        self._number: int | None = None
        self._identity: ShardIdentity | None = None
        self._entered: tuple[Callable[[], Load], Callable[[Incumbent], None]] | None = None
        self._is_lost = False
        self._is_stopping = False
        for server in self._servers:
            server.hub.came_up = partial(self._came_up, server)
            server.hub.server.journal.room.shares = len(hubs)

    def at(self, channel: str) -> RedisHub:
        """Where a channel is."""
        return self._hubs[self._place(channel)]

    @property
    def hubs(self) -> Sequence[RedisHub]:
        """All servers, in the order in which they were named."""
        return self._hubs

    # -- life ----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """See the module."""
        return 2 * sum(hub.is_live for hub in self._hubs) >= len(self._hubs)

    def start(self, receiver: Receiver) -> Deferred[None]:
        """See ``api.Hub``. Fires when all servers are live; when the time is over, if the hub is."""
        return Deferred.fromCoroutine(self._start(receiver))

    async def _start(self, receiver: Receiver) -> None:
        outcomes = await DeferredList([hub.start(receiver) for hub in self._hubs], consumeErrors=True)
        failures: list[Failure] = [cast(Failure, outcome) for is_done, outcome in outcomes if not is_done]
        for failure in failures:
            if not failure.check(HubUnavailable):
                failure.raiseException()
        if failures and not self.is_live:
            failures[0].raiseException()
        for failure in failures:
            self.log.warn(
                "started without a part of the hub: {why}; its channels wait", why=failure.getErrorMessage()
            )
        self._check_different()

    def _check_different(self) -> None:
        # Two names of one server: all that goes to the shard as a whole would be heard twice.
        runs: dict[bytes, str] = {}
        for hub in self._hubs:
            connection = hub.server.commands.protocol
            run = connection.server_run if connection is not None else b""
            if run and run in runs:
                raise HubMisconfigured(f"hub: {runs[run]} and {hub.name} are one server; name it once")
            runs[run] = hub.name

    def stop(self) -> Deferred[None]:
        """See ``api.Hub``."""
        self._is_stopping = True
        return gatherResults([hub.stop() for hub in self._hubs], consumeErrors=True).addCallback(_nothing)

    def pause(self) -> None:
        """See ``api.Hub``."""
        for hub in self._hubs:
            hub.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        for hub in self._hubs:
            hub.resume()

    # -- the number ------------------------------------------------------------------------------------

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._claim(shard, identity))

    async def _claim(self, shard: int | None, identity: ShardIdentity) -> int:
        self._identity = identity
        for number in range(MAX_SHARD + 1) if shard is None else (shard,):
            try:
                await self._claim_on_all(number, identity)
            except LeaseTaken:
                if shard is not None:
                    raise
            else:
                self._number = number
                return number
        raise HubUnavailable(self.name, f"all shard numbers up to {MAX_SHARD} are taken")

    async def _claim_on_all(self, number: int, identity: ShardIdentity) -> None:
        """On all that answer; on none if it fails.

        :raises HubError: see ``api.Hub.claim``.
        """
        away: HubUnavailable | None = None
        try:
            for server in self._servers:
                try:
                    await server.hub.claim(number, identity)
                except HubUnavailable as error:
                    away = error
                else:
                    server.is_claimed = True
        except HubError:
            await self._release()
            raise
        if away is not None and not any(server.is_claimed for server in self._servers):
            raise away

    async def _release(self) -> None:
        for server in self._servers:
            if server.is_claimed:
                server.is_claimed = False
                await server.hub.release()

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """See ``api.Hub``."""
        self._entered = load, lost
        for server in self._servers:
            if server.is_claimed:
                server.hub.enter(load, self._lost)
            else:
                self._came_up(server)

    def _lost(self, incumbent: Incumbent) -> None:
        if self._entered is not None and not self._is_lost:
            self._is_lost = True
            self._entered[1](incumbent)

    def _came_up(self, server: _Server) -> None:
        """A server that was away when the number was claimed may be there now."""
        if self._entered is None or server.is_claimed or server.is_claiming:
            return
        server.is_claiming = True
        claiming = Deferred.fromCoroutine(self._claim_late(server))
        claiming.addErrback(self._not_claimed, server).addBoth(self._claiming_over, server)

    async def _claim_late(self, server: _Server) -> None:
        assert self._number is not None and self._identity is not None and self._entered is not None
        since = self._reactor.seconds()
        while not self._is_stopping:
            try:
                await server.hub.claim(self._number, self._identity)
            except LeaseTaken as error:
                if self._reactor.seconds() - since > CONTEST_SECONDS:
                    self._lost(await self._holder(server, error))
                    return
                await deferLater(cast(Any, self._reactor), HEARTBEAT_SECONDS)
            else:
                server.is_claimed = True
                server.hub.enter(self._entered[0], self._lost)
                return

    async def _holder(self, server: _Server, error: LeaseTaken) -> Incumbent:
        for row in await server.hub.roster():
            if row.shard == error.shard:
                return Incumbent(shard=error.shard, identity=row.identity)
        holder = ShardIdentity(
            incarnation="", host=error.host, pid=error.pid, machine="", started="", version=""
        )
        return Incumbent(shard=error.shard, identity=holder)

    def _not_claimed(self, failure: Failure, server: _Server) -> None:
        if failure.check(HubUnavailable) or self._is_stopping:
            return  # it is claimed when the link is up again
        self.log.error(
            "shard {number} on {hub}: {why}",
            number=self._number,
            hub=server.hub.name,
            why=failure.getErrorMessage(),
        )

    def _claiming_over(self, outcome: Any, server: _Server) -> Any:
        server.is_claiming = False
        return outcome

    @property
    def holds_lease(self) -> bool:
        """See ``api.Hub``; on any server."""
        return any(hub.holds_lease for hub in self._hubs)

    # -- the shard as a whole ----------------------------------------------------------------------------

    def roster(self) -> Deferred[list[ShardInfo]]:
        """See ``api.Hub``; of all servers that answer."""
        return Deferred.fromCoroutine(self._roster())

    async def _roster(self) -> list[ShardInfo]:
        outcomes = await DeferredList([hub.roster() for hub in self._hubs], consumeErrors=True)
        found: dict[int, ShardInfo] = {}
        for is_done, outcome in outcomes:
            for row in outcome if is_done else ():
                known = found.get(row.shard)
                if known is None or row.age_seconds < known.age_seconds:
                    found[row.shard] = row
        if not any(is_done for is_done, _ in outcomes):
            cast(Failure, outcomes[0][1]).raiseException()
        return [found[number] for number in sorted(found)]

    def next_client(self) -> Deferred[int]:
        """See ``api.Hub``, and the module."""
        return self._first().next_client()

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """See ``api.Hub``, and the module."""
        return Deferred.fromCoroutine(self._pulse(seconds))

    async def _pulse(self, seconds: float) -> frozenset[str]:
        asked = [hub.pulse(seconds) for hub in self._hubs]
        for each in asked:
            each.addTimeout(seconds / 4, cast(Any, self._reactor), _too_late(self.name))
        outcomes = await DeferredList(asked, consumeErrors=True)
        answers = [outcome for is_done, outcome in outcomes if is_done]
        if not answers:
            cast(Failure, outcomes[0][1]).raiseException()
        return frozenset().union(*answers)

    def end_pulse(self) -> Deferred[None]:
        """See ``api.Hub``. Where it cannot be told the pulse runs out."""
        return Deferred.fromCoroutine(self._end_pulse())

    async def _end_pulse(self) -> None:
        outcomes = await DeferredList([hub.end_pulse() for hub in self._hubs], consumeErrors=True)
        if not any(is_done for is_done, _ in outcomes):
            cast(Failure, outcomes[0][1]).raiseException()

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        return self._first().ask(question, shard)

    def _first(self) -> RedisHub:
        return next((hub for hub in self._hubs if hub.is_live), self._hubs[0])


def _too_late(hub: str) -> Callable[[Any, float], Any]:
    def told(outcome: Any, seconds: float) -> Any:
        if isinstance(outcome, Failure):
            raise HubUnavailable(hub, f"no answer within {seconds:g} s")
        return outcome

    return told


def _nothing(_: Any) -> None:
    return None
