"""The hub on Redis or Valkey: puts links, journal, subscriptions, roster and probe together.

Keys, all under the prefix:

    PREFIX:shard:N           lease of a shard number
    PREFIX:roster            hash, shard number → row
    PREFIX:clients           counter of the greeting
    PREFIX:hearing           pub/sub channel that every shard hears which hears all of its channels
    PREFIX:probe:INCARNATION pub/sub channel on which a shard hears its own probes

those of a channel, see ``keys``, and those that ``presence`` and ``questions`` name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.address import HubAddress
from spread.hub.api import (
    PLAIN,
    ClientInfo,
    Format,
    History,
    HubCounters,
    Incumbent,
    Joined,
    Left,
    Load,
    Position,
    PresenceStats,
    PublishOptions,
    Receiver,
    ShardIdentity,
    ShardInfo,
    Stream,
)
from spread.hub.envelope import HEADER_BYTES, KIND_PRESSURE, KIND_PROBE, pack
from spread.hub.errors import (
    HubError,
    HubMisconfigured,
    HubRefused,
    HubUnavailable,
    LinkLost,
    MessageTooLarge,
)
from spread.hub.gathering import Gathering
from spread.hub.history import Histories
from spread.hub.keys import Keys
from spread.hub.link import CommandProtocol, Handshake, Link, LinkState, SubscriberProtocol
from spread.hub.presence import Presence
from spread.hub.probe import Probe, probe_sender
from spread.hub.publish import Journal, JournalLimits
from spread.hub.questions import Questions
from spread.hub.reactor import Clock, Endpoint
from spread.hub.repair import Repair
from spread.hub.roster import Roster
from spread.hub.subscribe import Subscriptions

__all__ = ["RedisHub", "RedisHubSettings"]

MAX_PUBLICATION_BYTES = 16 << 20
"""One message of 33 MB has cut every subscriber of a Redis at its default output limit; ours stays below."""

STOP_SECONDS = 2.0
"""How long giving back the lease may take at a stop; after that it runs out by itself."""


@dataclass(frozen=True, slots=True)
class RedisHubSettings:
    """What a Redis hub can be told; units in the names."""

    prefix: str = "spread"
    start_seconds: float = 5.0
    reply_seconds: float = 3.0
    linger_seconds: float = 3.0
    probe_seconds: float = 3.0
    ask_seconds: float = 10.0
    position_check_seconds: float = 40.0
    """A followed channel that was silent for so long is compared with its stream."""
    journal: JournalLimits = field(default_factory=lambda: JournalLimits(5.0, 100_000, 32 << 20))


class RedisHub:
    """See ``api.Hub`` for the promises.

    :param endpoint: where the server is; see ``topology.endpoint_of``.
    :param incarnation: 16 hex digits that name this run of this shard.
    :param stopped: called after both links are closed; may give a Deferred (the embedded server's leave).
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
    ) -> None:
        self.name = address.name
        self.counters = HubCounters()
        self._reactor = reactor
        self._settings = settings
        self._after_stop = stopped
        self._receiver: Receiver | None = None
        self._subscriptions: Subscriptions | None = None
        self._repair: Repair | None = None
        self._paused = False
        self._stopping: Deferred[None] | None = None
        shard = bytes.fromhex(incarnation)
        self._handshake = Handshake(
            hub=self.name,
            client_name=f"spread-{incarnation}",
            reply_seconds=settings.reply_seconds,
            username=address.username,
            password=address.password,
            db=address.db,
            master_only=bool(address.service),
        )
        self._commands = Link(
            reactor,
            endpoint,
            name=self.name,
            build=lambda: CommandProtocol(reactor, self._handshake),
            up=self._commands_up,
            down=self._commands_down,
        )
        self._hearing = Link(
            reactor,
            endpoint,
            name=self.name,
            build=self._build_subscriber,
            up=self._hearing_up,
            down=self._hearing_down,
        )
        self._journal = Journal(reactor, self.name, shard, settings.journal, self.counters)
        self._roster = Roster(reactor, self._commands, settings.prefix)
        self._presence = Presence(reactor, self._commands, settings.prefix, self.counters)
        self._questions = Questions(
            reactor,
            self._commands,
            settings.prefix,
            shard,
            settings.ask_seconds,
            self.counters,
            roster=self.roster,
        )
        self._keys = Keys(settings.prefix)
        self._histories = Histories(self._commands, self._keys, self.counters)
        self._probe_key = f"{settings.prefix}:probe:{incarnation}".encode()
        probe = pack(KIND_PROBE, 0, shard, 0, 0, b"")
        self._pressure = pack(KIND_PRESSURE, 0, shard, 0, 0, b"")
        self._probe = Probe(
            reactor,
            settings.probe_seconds,
            probe_sender(lambda: self._commands.protocol, self._probe_key, probe),
            self.counters,
        )
        # While ``start`` waits: told when a link comes up, and what went wrong.
        self._became_live: Callable[[], None] = _nothing
        self._start_failed: Callable[[HubError], None] = lambda error: None
        self._gathering = Gathering(reactor, f"{settings.prefix}:hearing".encode())
        # Links that were up before: the first time is a start, not a reconnect.
        self._seen: set[Link] = set()

    # -- life ----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """See ``api.Hub``."""
        heard = self._subscriptions is not None and self._subscriptions.is_live
        return self._commands.state is LinkState.UP and heard

    def start(self, receiver: Receiver) -> Deferred[None]:
        """See ``api.Hub``."""
        self._receiver = receiver
        self._questions.start(receiver)
        self._repair = Repair(
            self._reactor,
            self._histories,
            receiver=receiver,
            counters=self.counters,
            check_seconds=self._settings.position_check_seconds,
        )
        self._subscriptions = Subscriptions(
            self._reactor,
            self.name,
            prefix=self._keys.channel_prefix,
            linger_seconds=self._settings.linger_seconds,
            reply_seconds=self._settings.reply_seconds,
            receiver=receiver,
            counters=self.counters,
            repair=self._repair,
            restored=self._hears_again,
            other=self._questions.heard,
        )
        started: Deferred[None] = Deferred()

        def ready() -> None:
            if self.is_live:
                settle()
                started.callback(None)

        def failed(error: HubError) -> None:
            settle()
            started.errback(error)

        def attempt_failed(error: HubError) -> None:
            # A wrong password does not become right by waiting; everything else may.
            if isinstance(error, HubRefused | HubMisconfigured):
                failed(error)

        def too_late() -> None:
            error = self._commands.last_error or self._hearing.last_error
            seconds = f"{self._settings.start_seconds:g} s"
            reason = error.reason if isinstance(error, HubUnavailable) else str(error or "no answer")
            failed(HubUnavailable(self.name, f"{reason} (tried for {seconds})"))

        def settle() -> None:
            if timer.active():
                timer.cancel()
            self._became_live = _nothing
            self._start_failed = self._commands.failed = self._hearing.failed = lambda error: None

        timer = self._reactor.callLater(self._settings.start_seconds, too_late)
        self._became_live = ready
        self._start_failed = failed
        self._commands.failed = self._hearing.failed = attempt_failed
        self._commands.start()
        self._hearing.start()
        return started

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
        self._start_failed(HubUnavailable(self.name, "this shard is stopping"))
        left = Deferred.fromCoroutine(self._leave(self._questions.stop()))
        left.addTimeout(STOP_SECONDS, cast(Any, self._reactor))
        left.addErrback(lambda failure: self.log.warn("leaving: {why}", why=failure.getErrorMessage()))
        await left
        self._gathering.stop()
        self._journal.stop()
        self._probe.stop()
        if self._subscriptions is not None:
            self._subscriptions.stop()
        await gatherResults([self._commands.stop(), self._hearing.stop()])
        if self._after_stop is not None:
            await self._after_stop()

    async def _leave(self, answered: Deferred[None]) -> None:
        await self._roster.leave()
        await answered

    # -- the links -------------------------------------------------------------------------------------

    def _commands_up(self, connection: CommandProtocol) -> None:
        self._note_up(self._commands, "commands")
        self._roster.beat()
        if self._repair is not None:
            self._repair.commands_up()
        self._gathering.wait(connection, lambda: self._journal.link_up(connection))
        self._became_live()

    def _commands_down(self, reason: str) -> None:
        self._gathering.stop()
        self._journal.link_down()
        if self._repair is not None:
            self._repair.commands_down()
        self._note_down("commands", reason)

    def _hears_again(self) -> bytes | None:
        if not isinstance(self._hearing.protocol, SubscriberProtocol):
            return None
        self._gathering.take_part(self._hearing.protocol)
        return self._gathering.key

    def _build_subscriber(self) -> SubscriberProtocol:
        connection = SubscriberProtocol(
            self._reactor, self._handshake, self._probe_key, self._questions.channels
        )
        # It is heard before it is up: who asks counts it from the moment it subscribes.
        connection.message = self._questions.heard
        return connection

    def _hearing_up(self, connection: SubscriberProtocol) -> None:
        assert self._subscriptions is not None
        self._note_up(self._hearing, "subscriber")
        self._questions.link_up(connection)
        self._subscriptions.link_up(connection)
        if self._paused:
            connection.pause()
        self._probe.watch(connection)
        self._became_live()

    def _hearing_down(self, reason: str) -> None:
        assert self._subscriptions is not None
        self._probe.stop()
        self._gathering.hear_no_more()
        self._subscriptions.link_down()
        self._questions.link_down(reason)
        self._note_down("subscriber", reason)

    def _note_up(self, link: Link, what: str) -> None:
        if link in self._seen:
            self.counters.reconnects += 1
            self.log.info("{what} link to {hub} is up again", what=what, hub=self.name)
        self._seen.add(link)

    def _note_down(self, what: str, reason: str) -> None:
        if self._stopping is None:
            self.log.warn("{what} link to {hub} lost: {reason}", what=what, hub=self.name, reason=reason)

    # -- what a shard asks for -------------------------------------------------------------------------

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._roster.claim(shard, identity))

    def enter(self, load: Callable[[], Load], lost: Callable[[Incumbent], None]) -> None:
        """See ``api.Hub``."""
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
        connection = self._commands.protocol
        if connection is None:
            reason = str(self._commands.last_error or "not connected")
            return fail(LinkLost(self.name, reason))
        return connection.execute_command(b"INCR", f"{self._settings.prefix}:clients")

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        if len(data) + HEADER_BYTES > MAX_PUBLICATION_BYTES:
            return fail(MessageTooLarge(len(data), MAX_PUBLICATION_BYTES - HEADER_BYTES))
        keys = self._keys
        if options is PLAIN:
            return self._journal.publish(keys.channel(channel), data, format, session)
        used: tuple[bytes, ...] = ()
        if options.history is not None:
            used = (keys.meta(channel), keys.stream(channel))
        if options.idempotency_key:
            used = (*used, keys.result(channel, options.idempotency_key))
        return self._journal.publish(keys.channel(channel), data, format, session, options, used)

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """See ``api.Hub``."""
        if self._commands.protocol is None:
            return fail(LinkLost(self.name, str(self._commands.last_error or "not connected")))
        return self._journal.announce(self._keys.channel(channel), event)

    def history(
        self,
        channel: str,
        history: History,
        *,
        since: Position | None = None,
        limit: int = 0,
        reverse: bool = False,
    ) -> Deferred[Stream]:
        """See ``api.Hub``."""
        offset = None if since is None else since.offset
        reading = self._histories.read(channel, history, since=offset, limit=limit, reverse=reverse)
        return Deferred.fromCoroutine(reading)

    def remove_history(self, channel: str) -> Deferred[None]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._histories.remove(channel))

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        assert self._subscriptions is not None, "start() comes first"
        return self._subscriptions.subscribe(channel, history)

    def unsubscribe(self, channel: str) -> None:
        """See ``api.Hub``."""
        if self._subscriptions is not None:
            self._subscriptions.unsubscribe(channel)

    def press(self, channel: str) -> None:
        """See ``api.Hub``."""
        connection = self._commands.protocol
        if connection is not None:
            hint = connection.execute_command(b"PUBLISH", self._keys.channel(channel), self._pressure)
            hint.addErrback(lambda failure: failure.trap(HubError))

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: int) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._presence.add(channel, info, ttl_seconds)

    def remove_presence(self, channel: str, client: str) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._presence.remove(channel, client)

    def presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        """See ``api.Hub``."""
        return self._presence.read(channel)

    def presence_stats(self, channel: str) -> Deferred[PresenceStats]:
        """See ``api.Hub``."""
        return self._presence.stats(channel)

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        return self._questions.ask(question, shard)

    def pause(self) -> None:
        """See ``api.Hub``."""
        self._paused = True
        if self._repair is not None:
            self._repair.pause()
        if isinstance(self._hearing.protocol, SubscriberProtocol):
            self._hearing.protocol.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        self._paused = False
        if self._repair is not None:
            self._repair.resume()
        if isinstance(self._hearing.protocol, SubscriberProtocol):
            self._hearing.protocol.resume()


def _pass_on(outcome: Any, result: Deferred[None]) -> Any:
    if isinstance(outcome, Failure):
        result.errback(outcome)
        return None
    result.callback(outcome)
    return outcome


def _nothing() -> None:
    pass
