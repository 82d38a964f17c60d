"""One Redis server, or one group of a cluster, as a shard uses it: everything that belongs to channels.

Puts together two links, the journal, the subscriptions with their repair, the probe, histories and presence.
What belongs to the shard as a whole — lease, roster, questions — uses ``commands`` and is put on top by
``redis`` or ``cluster``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.logger import Logger

from spread.hub.api import (
    PLAIN,
    ClientInfo,
    Format,
    History,
    HubCounters,
    Joined,
    Left,
    Ownership,
    Position,
    PresenceStats,
    PublishOptions,
    Receiver,
    Stream,
)
from spread.hub.dialect import CLASSIC, Dialect
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
from spread.hub.lineage import Lineage
from spread.hub.link import CommandProtocol, Handshake, Link, LinkState, SubscriberProtocol
from spread.hub.owners import Owners
from spread.hub.presence import Presence
from spread.hub.probe import Probe, probe_sender
from spread.hub.publish import Journal, JournalLimits
from spread.hub.reactor import Clock, Endpoint
from spread.hub.repair import Repair
from spread.hub.subscribe import Subscriptions

__all__ = ["MAX_PUBLICATION_BYTES", "RedisHubSettings", "Server"]

MAX_PUBLICATION_BYTES = 16 << 20
"""One message of 33 MB has cut every subscriber of a Redis at its default output limit; ours stays below."""


@dataclass(frozen=True, slots=True)
class RedisHubSettings:
    """What a hub on Redis can be told; units in the names."""

    prefix: str = "spread"
    start_seconds: float = 5.0
    reply_seconds: float = 3.0
    linger_seconds: float = 3.0
    probe_seconds: float = 3.0
    ask_seconds: float = 10.0
    position_check_seconds: float = 40.0
    """A followed channel that was silent for so long is compared with its stream."""
    journal: JournalLimits = field(default_factory=lambda: JournalLimits(5.0, 100_000, 32 << 20))


class Server:
    """Channel by channel it keeps what ``api.Hub`` promises.

    :param endpoint: where the server is; asked anew for each connection.
    :param handshake: what each connection says first; its ``hub`` is the name in errors and logs.
    :param shard: incarnation, 8 bytes.
    :param probe_key: the pub/sub channel on which this shard hears its own probes; asked for each connection.
    :param hearing_key: the one that every shard hears which hears all of its channels; the same.
    :param lineage_key: where the generation of the server's data is kept, see ``lineage``; the same.
    :param control_channels: what a subscriber connection hears besides, from its handshake on.
    :param control: takes the messages of channels that nobody subscribed to.
    :param counters: those of the hub, where several servers are one.
    :param sequences: numbers the publications; the same.
    """

    log = Logger("spread.hub.server")

    def __init__(
        self,
        reactor: Clock,
        endpoint: Endpoint,
        handshake: Handshake,
        shard: bytes,
        settings: RedisHubSettings,
        *,
        probe_key: Callable[[], bytes],
        hearing_key: Callable[[], bytes],
        lineage_key: Callable[[], bytes],
        control_channels: Sequence[bytes] = (),
        control: Callable[[bytes, bytes], None] = lambda key, payload: None,
        dialect: Dialect = CLASSIC,
        counters: HubCounters | None = None,
        sequences: Iterator[int] | None = None,
    ) -> None:
        self.name = handshake.hub
        self.counters = HubCounters() if counters is None else counters
        self._is_part = counters is not None
        self.dialect = dialect
        self.commands_up: Callable[[], None] = _nothing
        """Called when commands can be given."""
        self.hearing_up: Callable[[SubscriberProtocol], None] = lambda connection: None
        """Called when the control channels are heard, on this connection."""
        self.hearing_down: Callable[[str], None] = lambda reason: None
        """Called with the reason when they are not any more."""
        self._reactor = reactor
        self._settings = settings
        self._handshake = handshake
        self._probe_key_of = probe_key
        self._probe_key = b""
        self._hearing_key_of = hearing_key
        self.control_channels = control_channels
        """May be changed; the next connection hears them."""
        self._control = control
        self._keys = Keys(settings.prefix)
        self._paused = False
        self._is_stopping = False
        self.commands = Link(
            reactor,
            endpoint,
            name=self.name,
            build=self._build_commands,
            up=self._commands_up,
            down=self._commands_down,
        )
        self.hearing = Link(
            reactor,
            endpoint,
            name=self.name,
            build=self._build_subscriber,
            up=self._hearing_up,
            down=self._hearing_down,
        )
        self.lineage = Lineage(
            reactor, lineage_key, self.commands, self.hearing, endpoint, dialect.is_sharded
        )
        self.journal = Journal(
            reactor, self.name, shard, settings.journal, self.counters, dialect.publish, sequences
        )
        self.histories = Histories(self.commands, self._keys, self.counters)
        self._owners = Owners(self.commands, self._keys, shard)
        self._presence = Presence(reactor, self.commands, settings.prefix, self.counters)
        self._pressure = pack(KIND_PRESSURE, 0, shard, 0, 0, b"")
        self._probe = Probe(
            reactor,
            settings.probe_seconds,
            probe_sender(
                lambda: self.commands.protocol,
                lambda: self._probe_key,
                pack(KIND_PROBE, 0, shard, 0, 0, b""),
                dialect.publish,
            ),
            self.counters,
        )
        self.gathering = Gathering(reactor, b"", dialect)
        self.repair: Repair | None = None
        self.subscriptions: Subscriptions | None = None
        # While ``start`` waits: told when a link comes up, and what went wrong.
        self._became_live: Callable[[], None] = _nothing
        self._start_failed: Callable[[HubError], None] = lambda error: None
        self._is_away = True
        self.counters.servers_away += 1
        # Links that were up before: the first time is a start, not a reconnect.
        self._seen: set[Link] = set()

    # -- life ----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Commands are answered and subscriptions are being heard."""
        heard = self.subscriptions is not None and self.subscriptions.is_live
        return self.commands.state is LinkState.UP and heard

    @property
    def why_not(self) -> str:
        """Why commands cannot be given."""
        return str(self.commands.last_error or "not connected")

    def start(self, receiver: Receiver) -> Deferred[None]:
        """Connect; fires when both links are up. After a failure it goes on connecting until ``stop``.

        :raises HubUnavailable: (as a failure) not reached within ``start_seconds``.
        :raises HubRefused: credentials or permissions are wrong.
        :raises HubMisconfigured: the address cannot work.
        """
        self.repair = Repair(
            self._reactor,
            self.histories,
            receiver=receiver,
            counters=self.counters,
            check_seconds=self._settings.position_check_seconds,
        )
        self.subscriptions = Subscriptions(
            self._reactor,
            self.name,
            prefix=self._keys.channel_prefix,
            linger_seconds=self._settings.linger_seconds,
            reply_seconds=self._settings.reply_seconds,
            receiver=receiver,
            counters=self.counters,
            repair=self.repair,
            restored=self._hears_again,
            other=self._control,
            dialect=self.dialect,
            is_part=self._is_part,
        )
        if self._paused:
            self.repair.pause()
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
            error = self.commands.last_error or self.hearing.last_error
            seconds = f"{self._settings.start_seconds:g} s"
            reason = error.reason if isinstance(error, HubUnavailable) else str(error or "no answer")
            failed(HubUnavailable(self.name, f"{reason} (tried for {seconds})"))

        def settle() -> None:
            if timer.active():
                timer.cancel()
            self._became_live = _nothing
            self._start_failed = self.commands.failed = self.hearing.failed = lambda error: None

        timer = self._reactor.callLater(self._settings.start_seconds, too_late)
        self._became_live = ready
        self._start_failed = failed
        self.commands.failed = self.hearing.failed = attempt_failed
        self.commands.start()
        self.hearing.start()
        return started

    def stopping(self) -> None:
        """``stop`` will follow: who waits for the start hears of it, lost links are no news. Idempotent."""
        self._is_stopping = True
        self._start_failed(HubUnavailable(self.name, "this shard is stopping"))

    async def stop(self) -> None:
        """Fail what waits, close both links. Idempotent."""
        self.stopping()
        self.gathering.stop()
        self.lineage.stop()
        self.journal.stop()
        self._probe.stop()
        if self.subscriptions is not None:
            self.subscriptions.stop()
        await gatherResults([self.commands.stop(), self.hearing.stop()])
        if self._is_away:  # and is none any more
            self._is_away = False
            self.counters.servers_away -= 1

    def begin_anew(self, reason: str) -> None:
        """Connect again, both links: the endpoint leads to another server."""
        self.commands.begin_anew(reason)
        self.hearing.begin_anew(reason)

    # -- the links -------------------------------------------------------------------------------------

    def _build_commands(self) -> CommandProtocol:
        connection = CommandProtocol(self._reactor, self._handshake)
        connection.last_step = self.lineage.introduce
        return connection

    def _commands_up(self, connection: CommandProtocol) -> None:
        self.lineage.watch()
        self._note_up(self.commands, "commands")
        self.commands_up()
        if self.repair is not None:
            self.repair.commands_up()
        self.gathering.key = self._hearing_key_of()
        self.gathering.wait(connection, lambda: self.journal.link_up(connection))
        self._count_away()
        self._became_live()

    def _commands_down(self, reason: str) -> None:
        self.lineage.stop()
        self.gathering.stop()
        self.journal.link_down()
        if self.repair is not None:
            self.repair.commands_down()
        self._count_away()
        self._note_down("commands", reason)

    def _hears_again(self) -> bytes | None:
        self._count_away()
        self._became_live()  # if this was the last that the start waited for
        if not isinstance(self.hearing.protocol, SubscriberProtocol):
            return None
        self.gathering.key = self._hearing_key_of()
        self.gathering.take_part(self.hearing.protocol)
        return self.gathering.key

    def _build_subscriber(self) -> SubscriberProtocol:
        self._probe_key = self._probe_key_of()
        connection = SubscriberProtocol(
            self._reactor, self._handshake, self._probe_key, self.control_channels, self.dialect
        )
        connection.last_step = self.lineage.introduce_hearing
        # It is heard before it is up: who asks counts it from the moment it subscribes.
        connection.message = self._control
        return connection

    def _hearing_up(self, connection: SubscriberProtocol) -> None:
        assert self.subscriptions is not None
        self._note_up(self.hearing, "subscriber")
        self.hearing_up(connection)
        self.subscriptions.link_up(connection)
        if self._paused:
            connection.pause()
        self._probe.watch(connection)
        self._count_away()
        self._became_live()

    def _hearing_down(self, reason: str) -> None:
        assert self.subscriptions is not None
        self._probe.stop()
        self.gathering.hear_no_more()
        self.subscriptions.link_down()
        self.hearing_down(reason)
        self._count_away()
        self._note_down("subscriber", reason)

    def _count_away(self) -> None:
        if self._is_away is self.is_live:
            self._is_away = not self.is_live
            self.counters.servers_away += 1 if self._is_away else -1

    def _note_up(self, link: Link, what: str) -> None:
        if link in self._seen:
            self.counters.reconnects += 1
            self.log.info("{what} link to {hub} is up again", what=what, hub=self.name)
        self._seen.add(link)

    def _note_down(self, what: str, reason: str) -> None:
        if not self._is_stopping:
            self.log.warn("{what} link to {hub} lost: {reason}", what=what, hub=self.name, reason=reason)

    # -- channels: see ``api.Hub`` -----------------------------------------------------------------------

    def publish(
        self, channel: str, data: bytes, format: Format, session: int, options: PublishOptions = PLAIN
    ) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        if len(data) + HEADER_BYTES > MAX_PUBLICATION_BYTES:
            return fail(MessageTooLarge(len(data), MAX_PUBLICATION_BYTES - HEADER_BYTES))
        keys = self._keys
        if options is PLAIN:
            return self.journal.publish(keys.channel(channel), data, format, session)
        used: tuple[bytes, ...] = ()
        if options.history is not None:
            used = (keys.meta(channel), keys.stream(channel))
        if options.idempotency_key:
            used = (*used, keys.result(channel, options.idempotency_key))
        if options.fence is not None:
            used = (*used, keys.owner(channel))
        return self.journal.publish(keys.channel(channel), data, format, session, options, used)

    def announce(self, channel: str, event: Joined | Left) -> Deferred[None]:
        """See ``api.Hub``."""
        if self.commands.protocol is None:
            return fail(LinkLost(self.name, self.why_not))
        return self.journal.announce(self._keys.channel(channel), event)

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
        reading = self.histories.read(channel, history, since=offset, limit=limit, reverse=reverse)
        return Deferred.fromCoroutine(reading)

    def remove_history(self, channel: str) -> Deferred[None]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self.histories.remove(channel))

    def subscribe(self, channel: str, history: History | None = None) -> Deferred[Position | None]:
        """See ``api.Hub``."""
        assert self.subscriptions is not None, "start() comes first"
        return self.subscriptions.subscribe(channel, history)

    def unsubscribe(self, channel: str) -> None:
        """See ``api.Hub``."""
        if self.subscriptions is not None:
            self.subscriptions.unsubscribe(channel)

    def press(self, channel: str) -> None:
        """See ``api.Hub``."""
        connection = self.commands.protocol
        if connection is not None:
            hint = connection.execute_command(
                self.dialect.publish, self._keys.channel(channel), self._pressure
            )
            hint.addErrback(lambda failure: failure.trap(HubError))

    def add_presence(self, channel: str, info: ClientInfo, ttl_seconds: float) -> Deferred[None]:
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

    def owner_of(self, channel: str) -> Deferred[Ownership | None]:
        """See ``api.Hub``."""
        return self._owners.owner_of(channel)

    def take(self, channel: str, over: Ownership | None = None) -> Deferred[Ownership]:
        """See ``api.Hub``."""
        return self._owners.take(channel, over)

    def give_up(self, channel: str, ownership: Ownership) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._owners.give_up(channel, ownership)

    def save_state(
        self, channel: str, ownership: Ownership, state: bytes, ttl_seconds: int
    ) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._owners.save_state(channel, ownership, state, ttl_seconds)

    def load_state(self, channel: str) -> Deferred[bytes | None]:
        """See ``api.Hub``."""
        return self._owners.load_state(channel)

    def pause(self) -> None:
        """See ``api.Hub``."""
        self._paused = True
        if self.repair is not None:
            self.repair.pause()
        if isinstance(self.hearing.protocol, SubscriberProtocol):
            self.hearing.protocol.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        self._paused = False
        if self.repair is not None:
            self.repair.resume()
        if isinstance(self.hearing.protocol, SubscriberProtocol):
            self.hearing.protocol.resume()


def _nothing() -> None:
    pass
