"""The hub on a Redis or Valkey Cluster: a ``Server`` for each group of nodes, and what belongs to the shard.

A *group* is a primary with its replicas. It stays itself when a replica takes over: its links ask the
topology for the present primary at each attempt, so a failover is a reconnect, with all that a reconnect
repairs.

A channel is served by the group of its slot (``slots``): sharded pub/sub, SSUBSCRIBE and SPUBLISH, so that
what one group does costs the others nothing. What belongs to the shard as a whole — lease, roster, lives,
questions — has keys with the tag ``{PREFIX}``, in one slot, and goes to the group that serves it, the
*control group*:

    {PREFIX}:shard:N  {PREFIX}:roster  {PREFIX}:lives …    see ``keys``
    {PREFIX}:clients                                       counter of the greeting
    {PREFIX}:control  {PREFIX}:control:INCARNATION         see ``questions``
    PREFIX:probe:INCARNATION:{N}                           pub/sub channel for a shard's own probes
    PREFIX:hearing:{N}                                     pub/sub channel of who hears a whole group
    PREFIX:lineage:{N}                                     see ``lineage``

where N is a number whose slot the group serves.

When slots move, their channels are handed over: subscriptions with their positions and with those who wait,
and publications that wait, leave the old group and enter the new one. A channel that keeps history goes on
without a gap, from its position in the stream, which has moved with it; a plain one may miss what is
published meanwhile, which is counted and told as any other window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.address import HubAddress
from spread.hub.api import (
    Channels,
    HubCounters,
    Incumbent,
    Load,
    Receiver,
    ShardIdentity,
    ShardInfo,
)
from spread.hub.cluster_redirects import ClusterRedirects
from spread.hub.cluster_topology import Address, GroupEndpoint, Topology
from spread.hub.dialect import SHARDED
from spread.hub.errors import HubError, HubUnavailable, LinkLost, ReplyError
from spread.hub.link import CommandProtocol, Handshake, Link, SubscriberProtocol
from spread.hub.lives import Lives
from spread.hub.owners import Pulses
from spread.hub.publish import Journal
from spread.hub.questions import Questions
from spread.hub.reactor import Clock, Endpoint
from spread.hub.refusing import Refusing
from spread.hub.roster import Roster
from spread.hub.routed import Registered, Routed
from spread.hub.scripts import run
from spread.hub.server import RedisHubSettings, Server
from spread.hub.slots import (
    SLOTS,
    Node,
    Part,
    Redirect,
    is_divided,
    same_groups,
    slot_of,
    slot_of_channel,
    tag_in,
)

__all__ = ["ClusterHub", "Group"]

STOP_SECONDS = 2.0
"""How long giving back the lease may take at a stop; after that it runs out by itself."""

HOLD_SECONDS = 0.5
LOOK_SECONDS = 0.01
"""After slots have moved: how long, at most, publications wait for those that may come back from the old
group, and how often it is looked whether all have."""

AGAIN_SECONDS = 0.2
"""At the start: pause after no node has answered."""


class Group:
    """A primary with its replicas, as this shard uses it."""

    def __init__(self, number: int, part: Part) -> None:
        self.number = number
        self.part = part
        self.endpoint: GroupEndpoint
        self.server: Server
        self._tag: tuple[Part, str] | None = None

    @property
    def primary(self) -> Node:
        """The present one."""
        return self.part.primary

    @property
    def tag(self) -> str:
        """A hash tag of this group's slots."""
        if self._tag is None or self._tag[0] is not self.part:
            self._tag = self.part, tag_in(set(self.part.slots))
        return self._tag[1]


class _ControlLink:
    """The link for commands to the control group, whichever that is; as much of a ``Link`` as is used."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.group: Group | None = None

    @property
    def protocol(self) -> CommandProtocol | None:
        """The connection, while it is up."""
        return None if self.group is None else self.group.server.commands.protocol

    @property
    def last_error(self) -> HubError | None:
        """Why it is not."""
        return None if self.group is None else self.group.server.commands.last_error


class _Channels(Routed):
    """Where the register of the shard sends on what it was told."""

    def __init__(self, at: Callable[[str], Channels]) -> None:
        self._at = at

    def at(self, channel: str) -> Channels:
        return self._at(channel)


class ClusterHub(Registered):
    """See ``api.Hub`` for the promises.

    :param server: makes the endpoint of a node; see ``topology.server_endpoints``.
    :param incarnation: 16 hex digits that name this run of this shard.
    """

    log = Logger("spread.hub.cluster")

    def __init__(
        self,
        reactor: Clock,
        address: HubAddress,
        server: Callable[[str, int], Endpoint],
        incarnation: str,
        settings: RedisHubSettings,
    ) -> None:
        self.name = address.name
        self.counters = HubCounters()
        """See ``api.Hub``; of all groups together."""
        self._reactor = reactor
        self._settings = settings
        self._endpoint_to = server
        self._incarnation = incarnation
        self._shard = bytes.fromhex(incarnation)
        self._tagged = f"{{{settings.prefix}}}"
        self._refusing = Refusing(self.name, "in a cluster the name of a channel cannot begin with '}'")
        self._redirects = ClusterRedirects(
            reactor, self.name, settings.reply_seconds, self.counters, self._owner, self._connection_to
        )
        self._credentials = address.username, address.password
        self.topology = Topology(
            reactor,
            self.name,
            address.hosts,
            server,
            self._handshake(self.name),
            self._lanes,
            self._changed,
        )
        self._redirects.topology = self.topology
        self._groups: list[Group] = []
        self._table: list[Group] = []  # by slot; none while the topology is not known
        self._numbers = 0
        self._sequences = count(1)
        self._retiring: set[Deferred[None]] = set()
        self._receiver: Receiver | None = None
        self._starts: list[tuple[Group, Deferred[None]]] = []
        self._paused = False
        self._is_stopping = False
        self._stopping: Deferred[None] | None = None
        self._control = _ControlLink(self.name)
        control = cast(Link, self._control)
        self.lives = Lives(reactor, control, self._tagged, incarnation, self.counters, _Channels(self.at))
        self._roster = Roster(reactor, control, self._tagged, self.lives.beaten)
        self._pulses = Pulses(control, self._tagged, incarnation)
        self._questions = Questions(
            reactor,
            control,
            self._tagged,
            self._shard,
            settings.ask_seconds,
            self.counters,
            roster=self.roster,
            dialect=SHARDED,
        )

    def _handshake(self, hub: str) -> Handshake:
        username, password = self._credentials
        return Handshake(
            hub=hub,
            client_name=f"spread-{self._incarnation}",
            reply_seconds=self._settings.reply_seconds,
            username=username,
            password=password,
            redirects=self._redirects,
        )

    # -- life ----------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """The control group is live, and so are most groups.

        Not all: while one fails over, its channels wait, and the others' clients should not be sent away.
        """
        groups = self._groups
        control = self._control.group
        live = sum(group.server.is_live for group in groups)
        return control is not None and control.server.is_live and 2 * live > len(groups)

    def start(self, receiver: Receiver) -> Deferred[None]:
        """See ``api.Hub``. Fires when all groups are live; when the time is over, if the hub is."""
        self._receiver = receiver
        self._questions.start(receiver)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        until = self._reactor.seconds() + self._settings.start_seconds
        while True:
            try:
                await self.topology.begin()
                break
            except HubUnavailable as error:
                if self._is_stopping or self._reactor.seconds() + AGAIN_SECONDS > until:
                    seconds = f"{self._settings.start_seconds:g} s"
                    raise HubUnavailable(self.name, f"{error.reason} (tried for {seconds})") from error
            await deferLater(cast(Any, self._reactor), AGAIN_SECONDS)
        if self._is_stopping:
            raise HubUnavailable(self.name, "this shard is stopping")
        starts, self._starts = self._starts, []
        outcomes = await DeferredList([started for _, started in starts], consumeErrors=True)
        for (group, _), (is_done, outcome) in zip(starts, outcomes, strict=True):
            if not is_done:
                failure: Any = outcome
                if not failure.check(HubUnavailable):
                    raise failure.value
                reason = f"its node {group.primary}, as the cluster announces it: {failure.value.reason}"
                if not self.is_live:
                    raise HubUnavailable(self.name, reason) from failure.value
                self.log.warn("started without a part of the hub: {reason}", reason=reason)

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
        self._is_stopping = True
        for group in self._groups:
            group.server.stopping()
        left = Deferred.fromCoroutine(self._leave(self._questions.stop()))
        left.addTimeout(STOP_SECONDS, cast(Any, self._reactor))
        left.addErrback(lambda failure: self.log.warn("leaving: {why}", why=failure.getErrorMessage()))
        await left
        self.topology.stop()
        stops = [Deferred.fromCoroutine(group.server.stop()) for group in self._groups]
        await gatherResults([*stops, *self._retiring])

    async def _leave(self, answered: Deferred[None]) -> None:
        self.lives.stop()
        await self._roster.leave()
        await answered

    # -- groups ----------------------------------------------------------------------------------------

    @property
    def groups(self) -> Sequence[Group]:
        """Those that serve slots."""
        return self._groups

    def _changed(self, parts: Sequence[Part]) -> None:
        """The topology was asked. Mostly it says what it said before."""
        self.counters.refreshes += 1
        if self._is_stopping or [group.part for group in self._groups] == list(parts):
            return
        before, table_before = self._groups, self._table
        groups, moved = [], []
        for part, which in zip(parts, same_groups([group.part for group in before], parts), strict=True):
            if which is None:
                group = self._new_group(part)
            else:
                group = before[which]
                if group.primary != part.primary:
                    moved.append(group)
                group.part = part
            groups.append(group)
        gone = [group for group in before if group not in groups]
        # Slots that nobody serves stay where they were: what is published there waits.
        default = groups[0]
        table = [default if group in gone else group for group in table_before] if gone else table_before[:]
        table = table or [default] * SLOTS
        for group in groups:
            for first, last in group.part.ranges:
                table[first : last + 1] = [group] * (last + 1 - first)
        self._groups, self._table = groups, table
        self.counters.groups = len(groups)
        for group in groups:
            group.server.journal.room.shares = len(groups)
        for group in moved:
            self.log.info("group {number} is served by {node} now", number=group.number, node=group.primary)
            group.endpoint.moved()
            group.server.begin_anew(f"{group.primary} is the primary now")
        self._set_control(table[slot_of(self._tagged.encode())])
        if table_before:
            losing = {old for old, new in zip(table_before, table, strict=True) if old is not new}
            self._hand_over(losing)
        for group in gone:
            self._retire(group)

    def _new_group(self, part: Part) -> Group:
        self._numbers += 1
        group = Group(self._numbers, part)
        settings, prefix = self._settings, self._settings.prefix
        group.endpoint = GroupEndpoint(self.topology, lambda: group.primary, self._endpoint_to)
        group.server = server = Server(
            self._reactor,
            group.endpoint,
            self._handshake(f"{self.name} group {group.number}"),
            self._shard,
            settings,
            probe_key=lambda: f"{prefix}:probe:{self._incarnation}:{{{group.tag}}}".encode(),
            hearing_key=lambda: f"{prefix}:hearing:{{{group.tag}}}".encode(),
            lineage_key=lambda: f"{prefix}:lineage:{{{group.tag}}}".encode(),
            control=self._questions.heard,
            dialect=SHARDED,
            counters=self.counters,
            sequences=self._sequences,
        )
        server.journal.home = self._journal_of
        server.journal.target = self._asked
        server.commands_up = lambda: self._commands_up(group)
        server.hearing_up = lambda connection: self._hearing_up(group, connection)
        server.hearing_down = lambda reason: self._hearing_down(group, reason)
        self.log.info("group {number} is served by {node}", number=group.number, node=part.primary)
        if self._paused:
            server.pause()
        assert self._receiver is not None
        started = server.start(self._receiver)
        assert server.subscriptions is not None
        server.subscriptions.moved = lambda channel, why: self._redirects.noticed(ReplyError(why))
        if self._table:
            started.addErrback(lambda failure: self.log.warn("{why}", why=failure.getErrorMessage()))
        else:
            self._starts.append((group, started))
        return group

    def _retire(self, group: Group) -> None:
        self.log.info("group {number} serves no slots any more", number=group.number)
        stopped = Deferred.fromCoroutine(group.server.stop())
        self._retiring.add(stopped)
        stopped.addErrback(lambda failure: self.log.failure("leaving a group", failure))
        stopped.addBoth(lambda _: self._retiring.discard(stopped))

    def _hand_over(self, losing: set[Group]) -> None:
        subscriptions: dict[Group, list[Any]] = {}
        for group in losing:
            assert group.server.subscriptions is not None
            leaves = _leaving(self._group_of, group)
            for subscription in group.server.subscriptions.release(leaves):
                subscriptions.setdefault(self._group_of(subscription.channel), []).append(subscription)
        for group, taken in subscriptions.items():
            assert group.server.subscriptions is not None
            group.server.subscriptions.adopt(taken)
        for group in losing:
            self._hand_over_publications(group.server.journal)

    def _hand_over_publications(self, old: Journal) -> None:
        def leaves(key: bytes) -> bool:
            return self._journal_of(key) is not old

        homes: dict[Journal, list[Any]] = {}
        for entry in old.release(leaves):
            homes.setdefault(self._journal_of(entry.key), []).append(entry)
        for home, entries in homes.items():
            home.take_over(entries)
        if old.awaits(leaves):
            # These may come back and be handed over too: what was published since must not overtake them.
            held = [group.server.journal for group in self._groups if group.server.journal is not old]
            for journal in held:
                journal.hold()
            self._let_go(old, leaves, held, self._reactor.seconds() + HOLD_SECONDS)

    def _let_go(
        self, old: Journal, leaves: Callable[[bytes], bool], held: list[Journal], until: float
    ) -> None:
        if old.awaits(leaves) and self._reactor.seconds() < until:
            self._reactor.callLater(LOOK_SECONDS, self._let_go, old, leaves, held, until)
            return
        for journal in held:
            journal.go_on()

    # -- where things are ------------------------------------------------------------------------------

    def _group_of(self, channel: str) -> Group:
        return self._table[slot_of_channel(channel)]

    def at(self, channel: str) -> Channels:
        """The group that serves a channel; 0.5 µs."""
        if is_divided(channel):
            return self._refusing
        return self._table[slot_of_channel(channel)].server

    def _owner(self, key: bytes) -> CommandProtocol | None:
        return self._table[slot_of(key)].server.commands.protocol

    def _journal_of(self, key: bytes) -> Journal:
        return self._table[slot_of(key)].server.journal

    def _asked(self, error: ReplyError) -> CommandProtocol | None:
        redirect = Redirect.of(error)
        return None if redirect is None else self._connection_to((redirect.host, redirect.port))

    def _connection_to(self, address: Address) -> CommandProtocol | None:
        for group in self._groups:
            if (group.primary.host, group.primary.port) == address:
                return group.server.commands.protocol
        return None

    def _lanes(self) -> dict[Address, CommandProtocol]:
        lanes = {}
        for group in self._groups:
            connection = group.server.commands.protocol
            if connection is not None:
                lanes[group.primary.host, group.primary.port] = connection
        return lanes

    # -- the control group -----------------------------------------------------------------------------

    def _set_control(self, group: Group) -> None:
        old = self._control.group
        if old is group:
            return
        self._control.group = group
        group.server.control_channels = self._questions.channels
        if old is not None:
            old.server.control_channels = ()
            reason = f"group {group.number} serves the questions between shards now"
            self._questions.link_down(reason)
            old.server.hearing.begin_anew(reason)
            group.server.hearing.begin_anew(reason)
            if group.server.commands.protocol is not None:
                self._commands_up(group)

    def _commands_up(self, group: Group) -> None:
        if group is self._control.group:
            self._roster.beat()
            self.lives.register.link_up()

    def _hearing_up(self, group: Group, connection: SubscriberProtocol) -> None:
        if group is self._control.group:
            self._questions.link_up(connection)

    def _hearing_down(self, group: Group, reason: str) -> None:
        if group is self._control.group:
            self._questions.link_down(reason)

    # -- the shard as a whole ----------------------------------------------------------------------------

    def claim(self, shard: int | None, identity: ShardIdentity) -> Deferred[int]:
        """See ``api.Hub``."""
        return Deferred.fromCoroutine(self._roster.claim(shard, identity))

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
        connection = self._control.protocol
        if connection is None:
            return fail(LinkLost(self.name, str(self._control.last_error or "not connected")))
        key = f"{self._tagged}:clients".encode()
        return Deferred.fromCoroutine(run(connection, key, b"INCR", key))

    def ask(self, question: bytes, shard: str = "") -> Deferred[list[bytes]]:
        """See ``api.Hub``."""
        return self._questions.ask(question, shard)

    def pulse(self, seconds: float) -> Deferred[frozenset[str]]:
        """See ``api.Hub``."""
        return self._pulses.pulse(seconds)

    def end_pulse(self) -> Deferred[None]:
        """See ``api.Hub``."""
        return self._pulses.end_pulse()

    def pause(self) -> None:
        """See ``api.Hub``."""
        self._paused = True
        for group in self._groups:
            group.server.pause()

    def resume(self) -> None:
        """See ``api.Hub``."""
        self._paused = False
        for group in self._groups:
            group.server.resume()


def _leaving(group_of: Callable[[str], Group], group: Group) -> Callable[[str], bool]:
    return lambda channel: group_of(channel) is not group


def _pass_on(outcome: Any, result: Deferred[None]) -> Any:
    if isinstance(outcome, Failure):
        result.errback(outcome)
        return None
    result.callback(outcome)
    return outcome
