"""The hub on one Redis or Valkey: a server, and what belongs to the shard as a whole.

Keys, all under the prefix:

    PREFIX:clients           counter of the greeting
    PREFIX:hearing           pub/sub channel that every shard hears which hears all of its channels
    PREFIX:probe:INCARNATION pub/sub channel on which a shard hears its own probes

those of channels and of shards, see ``keys``, and those that ``presence`` and ``questions`` name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.address import HubAddress
from spread.hub.api import (
    HubCounters,
    Incumbent,
    Load,
    Receiver,
    ShardIdentity,
    ShardInfo,
)
from spread.hub.errors import LinkLost
from spread.hub.link import Handshake
from spread.hub.lives import Lives
from spread.hub.owners import Pulses
from spread.hub.questions import Questions
from spread.hub.reactor import Clock, Endpoint
from spread.hub.roster import Roster
from spread.hub.routed import Registered
from spread.hub.server import RedisHubSettings, Server

__all__ = ["RedisHub", "RedisHubSettings"]

STOP_SECONDS = 2.0
"""How long giving back the lease may take at a stop; after that it runs out by itself."""


class RedisHub(Registered):
    """See ``api.Hub`` for the promises.

    :param endpoint: where the server is; see ``topology.endpoint_of``.
    :param incarnation: 16 hex digits that name this run of this shard.
    :param stopped: called after both links are closed; may give a Deferred (the embedded server's leave).
    :param counters: those of the hub, where several servers are one.
    """

    log = Logger("spread.hub.redis")

    def __init__(
        self,
        reactor: Clock,
        address: HubAddress,
        endpoint: Endpoint,
        incarnation: str,
        settings: RedisHubSettings,
        *,
        stopped: Callable[[], Deferred[None]] | None = None,
        counters: HubCounters | None = None,
    ) -> None:
        self.name = address.name
        self.label = address.label or address.name
        """Its name among several."""
        self.came_up: Callable[[], None] = lambda: None
        """Called when commands can be given."""
        self._reactor = reactor
        self._settings = settings
        self._after_stop = stopped
        self._stopping: Deferred[None] | None = None
        shard = bytes.fromhex(incarnation)
        handshake = Handshake(
            hub=self.name,
            client_name=f"spread-{incarnation}",
            reply_seconds=settings.reply_seconds,
            username=address.username,
            password=address.password,
            db=address.db,
            master_only=bool(address.service),
        )
        own, everybody = Questions.channels_of(settings.prefix, shard)
        probe_key = f"{settings.prefix}:probe:{incarnation}".encode()
        hearing_key = f"{settings.prefix}:hearing".encode()
        lineage_key = f"{settings.prefix}:lineage".encode()
        self.server = Server(
            reactor,
            endpoint,
            handshake,
            shard,
            settings,
            probe_key=lambda: probe_key,
            hearing_key=lambda: hearing_key,
            lineage_key=lambda: lineage_key,
            control_channels=(own, everybody),
            control=lambda key, payload: self._questions.heard(key, payload),
            counters=counters,
        )
        self.lives = Lives(
            reactor,
            self.server.commands,
            settings.prefix,
            incarnation,
            self.server.counters,
            self.server,
        )
        self._roster = Roster(reactor, self.server.commands, settings.prefix, self.lives.beaten)
        self._questions = Questions(
            reactor,
            self.server.commands,
            settings.prefix,
            shard,
            settings.ask_seconds,
            self.server.counters,
            roster=self.roster,
        )
        self._pulses = Pulses(self.server.commands, settings.prefix, incarnation)
        self.server.commands_up = self._commands_up
        self.server.hearing_up = self._questions.link_up
        self.server.hearing_down = self._questions.link_down

    # -- life ----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """See ``api.Hub``."""
        return self.server.is_live

    @property
    def counters(self) -> HubCounters:
        """See ``api.Hub``."""
        return self.server.counters

    def start(self, receiver: Receiver) -> Deferred[None]:
        """See ``api.Hub``."""
        self._questions.start(receiver)
        return self.server.start(receiver)

    def stop(self) -> Deferred[None]:
        """See ``api.Hub``."""
        if self._stopping is None:
            # Set first: who waits for the start hears of its end in here, and may stop the hub too.
            self._stopping = Deferred()
            Deferred.fromCoroutine(self._stop()).chainDeferred(self._stopping)
        result: Deferred[None] = Deferred()
        self._stopping.addBoth(lambda outcome: _pass_on(outcome, result))
        return result

    async def _stop(self) -> None:
        self.server.stopping()
        left = Deferred.fromCoroutine(self._leave(self._questions.stop()))
        left.addTimeout(STOP_SECONDS, cast(Any, self._reactor))
        left.addErrback(lambda failure: self.log.warn("leaving: {why}", why=failure.getErrorMessage()))
        await left
        await self.server.stop()
        if self._after_stop is not None:
            await self._after_stop()

    def _commands_up(self) -> None:
        self._roster.beat()
        self.lives.register.link_up()
        self.came_up()

    async def _leave(self, answered: Deferred[None]) -> None:
        self.lives.stop()
        await self._roster.leave()
        await answered

    # -- the shard as a whole ----------------------------------------------------------------------------

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._roster.claim(shard, identity))

    def release(self) -> Deferred[None]:
        """Give back a number that was claimed and not entered with. Never fails."""
        return Deferred.fromCoroutine(self._roster.leave())

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """See ``api.Hub``."""
        self.lives.register.enter()
        self._roster.enter(load, lost)

    @property
    def holds_lease(self) -> bool:
        """See ``api.Hub``."""
        return self._roster.is_renewed

    def roster(self) -> Deferred[list[ShardInfo]]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._roster.read())

    def next_client(self) -> Deferred[int]:
        """See ``api.Hub``."""
        connection = self.server.commands.protocol
        if connection is None:
            return fail(LinkLost(self.name, self.server.why_not))
        return connection.execute_command(b"INCR", f"{self._settings.prefix}:clients")

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        return self._questions.ask(question, shard)

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """See ``api.Hub``."""
        return self._pulses.pulse(seconds)

    def end_pulse(self) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._pulses.end_pulse()

    # -- channels ----------------------------------------------------------------------------------------

    def at(self, channel: str) -> Server:
        """The server, whatever the channel."""
        return self.server

    def pause(self) -> None:
        """See ``api.Hub``."""
        self.server.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        self.server.resume()


def _pass_on(outcome: Any, result: Deferred[None]) -> Any:
    if isinstance(outcome, Failure):
        result.errback(outcome)
        return None
    result.callback(outcome)
    return outcome
