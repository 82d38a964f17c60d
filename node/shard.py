"""One shard: puts everything together, starts it, stops it.

    NEW → STARTING → READY → STOPPING → STOPPED

Start: the hub, the lease, then the sockets; a shard never takes a client before its number is its own.
Stop: no more clients, no more reading; what was said is published and delivered, everybody gets the
goodbye line, the lease is given back. All of that within ``stop_seconds``; what is left then is cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from spread.hub.api import Incumbent, Load, ShardIdentity
from spread.hub.errors import HubError
from spread.hub.reactor import Timer
from spread.node.addresses import Address, parse_address
from spread.node.app.load import AppFails, Loaded
from spread.node.app.updating import Updating, line_of
from spread.node.channels import Channels
from spread.node.codes import SHUTDOWN
from spread.node.cork import Cork
from spread.node.edge.text import TextFactory
from spread.node.fanout import Fanout
from spread.node.gateway import Gateway
from spread.node.hubs import OpenedHub
from spread.node.limits import Admission
from spread.node.listen import bind, start_listening, stop_listening
from spread.node.live_tables import LiveTables
from spread.node.metrics import ShardCounters, ShardMetrics
from spread.node.namespaces import Namespaces
from spread.node.pressure import Pressure
from spread.node.reactor import turns
from spread.node.session.text import Surroundings
from spread.node.settings import Settings
from spread.node.tables import TABLES_CHANNEL, Tables
from spread.node.tls import TlsContext, over_tls
from spread.node.web.ops import ops_site
from spread.node.web.site import BoundedFactory

__all__ = ["RESERVED_FILES", "Shard", "ShardState"]

RESERVED_FILES = 64
"""Open files kept for everything that is no client: links, ports, the log, the epoll."""

FEW_CLIENTS = 100
"""A shard whose open files leave room for fewer says so when it starts."""

SUMMARY_SECONDS = 60.0
QUIET_POLL_SECONDS = 0.01


class ShardState(Enum):
    """See the line at the top of this module."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Shard:
    """One shard of the cluster.

    :param number: the number it shall have; ``None`` takes the lowest free one.
    :param sockets: bound sockets by service (``text``, ``http``); the shard takes them over.
    :param is_inherited: a parent keeps these sockets open, so waiting connections go to a successor.
    :param file_limit: open files this process may have.
    :param tls: what the public ports show; ``None``: they do not speak TLS.
    :param tables: those of ``app.tables``; ``None``: there are none.
    :param app: what ``app.app`` names; ``None``: there is none.
    """

    log = Logger("spread.node.shard")

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        *,
        number: int | None,
        identity: ShardIdentity,
        opened: OpenedHub,
        sockets: Mapping[str, Any],
        is_inherited: bool,
        file_limit: int,
        tls: TlsContext | None = None,
        tables: Tables | None = None,
        app: Loaded | None = None,
    ) -> None:
        self.state = ShardState.NEW
        self.number: int | None = number
        self.counters = ShardCounters()
        self.lost_to: Incumbent | None = None
        """Who holds the number now, if this shard has lost it."""
        self._reactor = reactor
        self._settings = settings
        self._identity = identity
        self._opened = opened
        self._hub = opened.hub
        self._sockets = dict(sockets)
        self._is_inherited = is_inherited
        self._tls = tls
        self._ports: dict[str, IListeningPort] = {}
        self._ops_port: IListeningPort | None = None
        self._addresses: dict[str, str] = {}
        self._began = 0.0
        self._summary: Timer | None = None
        self._told = (0, 0, 0)
        self._stopped: Deferred[None] | None = None
        self._lost: Callable[[], None] = lambda: None
        self._app = app

        node = settings.node
        incarnation = bytes.fromhex(identity.incarnation)
        self._cork = Cork(reactor, time.perf_counter, node.fanout_seconds)
        self._channels = Channels(self._hub, self.counters)
        pressure = Pressure(reactor, self._hub, self.counters)
        personal = settings.client.subscribe_to_user_personal_channel
        namespaces = Namespaces(settings.channel, personal.personal_channel_namespace)
        self.tables: LiveTables | None = None
        if tables is not None:
            history = namespaces.options(TABLES_CHANNEL)
            self.tables = LiveTables(
                reactor,
                tables,
                settings.app.tables,
                hub=self._hub,
                history=None if history is None else history.history,
                counters=self.counters,
                max_bytes=settings.app.tables_max_bytes,
            )
        numbers = count(1)
        most = max(1, file_limit - RESERVED_FILES - node.max_http_connections)
        self._has_few_files = most < FEW_CLIENTS and not node.max_clients
        self._admission = Admission(
            min(node.max_clients, most) if node.max_clients else most, node.max_clients_per_address
        )
        self._gateway = Gateway(
            reactor,
            settings,
            hub=self._hub,
            channels=self._channels,
            namespaces=namespaces,
            pressure=pressure,
            counters=self.counters,
            cork=self._cork,
            admission=self._admission,
            numbers=numbers,
            incarnation=identity.incarnation,
            version=identity.version,
            number=lambda: self.number,
            tables=self.tables,
            has_app=app is not None,
            turns=turns,
        )
        self._updating = Updating(
            reactor,
            settings.app,
            hub=self._hub,
            relays=self._gateway.control,
            incarnation=identity.incarnation,
            host=self._gateway.app,
            loaded=app,
            tables=self.tables,
        )
        self._fanout = Fanout(
            reactor,
            time.perf_counter,
            hub=self._hub,
            channels=self._channels,
            cork=self._cork,
            pressure=pressure,
            counters=self.counters,
            answer=self._gateway.control.answer,
            incarnation=incarnation,
            slice_seconds=node.fanout_seconds,
            inbox_max_bytes=node.inbox_max_bytes,
        )
        surroundings = Surroundings(
            reactor,
            self._hub,
            self._channels,
            pressure,
            self.counters,
            settings.text,
            settings.hub,
            namespaces,
            self._gateway.app,
        )
        self._text = TextFactory(surroundings, self._admission, self._cork, numbers, node.outbox_max_bytes)
        self._metrics = ShardMetrics(self.counters, self._hub.counters, turns)
        self._metrics.set_limits(_limits(settings, self._admission))
        self._metrics.add(self._updating.metrics)
        if self._gateway.app is not None:
            self._metrics.add(self._gateway.app.metrics)
        if self._gateway.owners is not None:
            self._metrics.add(self._gateway.owners.metrics)

    # -- start -------------------------------------------------------------------------------------------

    async def start(self, lost: Callable[[], None]) -> str:
        """Take part in the cluster, then take clients. Gives the ``ready`` line.

        :param lost: called when another process has taken the number; the shard must be stopped.
        :raises HubError: the hub cannot be reached, or refuses, or the number is taken.
        :raises AppFails: the app's constructor, ``check`` or ``starting`` does.
        :raises CannotListen: a port cannot be had.
        """
        self.state = ShardState.STARTING
        self._began = self._reactor.seconds()
        self._lost = lost
        await self._opened.prepare()
        await self._hub.start(self._fanout)
        self.number = await self._hub.claim(self.number, self._identity)
        if self._gateway.app is not None and self._app is not None:
            try:
                await self._gateway.app.start(self._app)
            except HubError:
                raise
            except Exception as error:  # whatever the team's code raises
                raise AppFails("the app cannot start") from error
        self._listen()
        self.state = ShardState.READY  # before the first heartbeat, which tells it to the others
        self._hub.enter(self._load, self._number_lost)
        self._summary = self._reactor.callLater(SUMMARY_SECONDS, self._summarize)
        if self.tables is not None:
            self.tables.start()
        self.log.info(
            "shard {number} is ready as process {pid}, hub {hub}",
            number=self.number,
            pid=self._identity.pid,
            hub=self._hub.name,
        )
        if self._has_few_files:
            self.log.warn(
                "no more than {most} clients fit: raise the limit of open files (ulimit -n), or lower "
                "node.max_http_connections, which is {http}",
                most=self._admission.max_clients,
                http=self._settings.node.max_http_connections,
            )
        return self._ready_line()

    def _listen(self) -> None:
        ops = parse_address(self._settings.node.ops)
        if ops is not None:
            assert self.number is not None
            ops = ops.plus(self.number)
            sock = bind(ops.host, ops.port, shared=False)
            self._ops_port = start_listening(
                self._reactor,
                sock,
                ops_site(self._reactor, self._metrics, self.reasons_not_ready, self._updating.reload),
            )
        http = BoundedFactory(
            self._gateway.site(), self._settings.node.max_http_connections, self._http_refused
        )
        factories = {"text": self._text, "http": http, "json": self._gateway.json_factory()}
        for service, sock in self._sockets.items():
            factory = over_tls(self._tls, factories[service], self._reactor)
            self._ports[service] = start_listening(self._reactor, sock, factory)
        self._sockets.clear()
        ports: dict[str, Any] = {**self._ports, "ops": self._ops_port}
        for service in ("text", "http", "json", "ops"):
            port = ports.get(service)
            if port is not None:
                self._addresses[service] = str(Address(port.getHost().host, port.getHost().port))
            elif service != "json":  # off unless it is asked for, and not worth a word then
                self._addresses[service] = "off"

    def _http_refused(self) -> None:
        self.counters.refused_http += 1

    def _ready_line(self) -> str:
        parts = " ".join(f"{service}={address}" for service, address in self._addresses.items())
        return f"ready shard={self.number} {parts} hub={self._hub.name}"

    # -- while it runs -----------------------------------------------------------------------------------

    def reasons_not_ready(self) -> list[str]:
        """Why a load balancer should send no clients here now; empty when it should."""
        reasons = []
        if self.state is not ShardState.READY:
            reasons.append(f"the shard is {self.state.value}")
        if not self._hub.is_live:
            reasons.append(f"the hub {self._hub.name} is away")
        if not self._hub.holds_lease:
            reasons.append(f"the lease of shard {self.number} could not be renewed")
        if self._admission.clients >= self._admission.max_clients:
            reasons.append(f"full: {self._admission.clients} clients")
        return reasons

    def reload(self) -> Deferred[str]:
        """Update the app of this shard; gives the line that says what became of it. Never fails."""
        if self.state is not ShardState.READY:
            return succeed(f"refused shard={self.number} the shard is {self.state.value}")
        return self._updating.reload.one().addCallback(line_of, self.number)

    def _load(self) -> Load:
        return Load(
            clients=self.counters.clients,
            channels=len(self._channels),
            addresses=self._addresses,
            ready=not self.reasons_not_ready(),
            users=self._gateway.clients.users,
            subscriptions=self.counters.subscriptions,
            uptime_seconds=int(self._reactor.seconds() - self._began),
            app=self._updating.title,
        )

    def _number_lost(self, incumbent: Incumbent) -> None:
        self.lost_to = incumbent
        self._lost()

    def _summarize(self) -> None:
        self._summary = self._reactor.callLater(SUMMARY_SECONDS, self._summarize)
        counters = self.counters
        now = (counters.connects, counters.spread, counters.deliveries)
        if now != self._told:
            connects, spread, deliveries = (new - old for new, old in zip(now, self._told, strict=True))
            self._told = now
            self.log.info(
                "{clients} clients; in the last {seconds:g} s {connects} connected, "
                "{spread} messages spread in {deliveries} deliveries",
                clients=counters.clients,
                seconds=SUMMARY_SECONDS,
                connects=connects,
                spread=spread,
                deliveries=deliveries,
            )

    # -- stop --------------------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Stop cleanly. Never fails, and fires within about ``stop_seconds``. Idempotent."""
        if self._stopped is None:
            was_ready = self.state is ShardState.READY
            self.state = ShardState.STOPPING
            self._stopped = Deferred.fromCoroutine(self._stop(was_ready))
        result: Deferred[None] = Deferred()

        def stopped(outcome: Any) -> None:
            self.state = ShardState.STOPPED
            if isinstance(outcome, Failure):
                self.log.failure("stopping shard {number}", outcome, number=self.number)
            result.callback(None)

        self._stopped.addBoth(stopped)
        return result

    async def _stop(self, was_ready: bool) -> None:
        deadline = self._reactor.seconds() + self._settings.node.stop_seconds
        if self._summary is not None:
            self._summary.cancel()
        self._updating.stop()
        if self.tables is not None:
            self.tables.stop()
        for sock in self._sockets.values():
            sock.close()
        closing = [stop_listening(port, inherited=self._is_inherited) for port in self._ports.values()]
        try:
            # Half of the time for what was said to be taken and delivered, most of the rest for the clients
            # to receive what waits for them, the last bit for the hub.
            now = self._reactor.seconds()
            if self._gateway.app is not None:
                await self._gateway.app.stop()
            self._text.stop_reading()
            self._gateway.close()
            await self._until(self._is_quiet, now + (deadline - now) * 0.5)
            self._text.say_goodbye(self.number or 0)
            self._gateway.end_all(SHUTDOWN)
            await self._until(
                lambda: not self.counters.clients and self._is_quiet(), now + (deadline - now) * 0.8
            )
            if self.counters.clients:
                self.log.warn(
                    "{count} clients did not take their last words in time", count=self.counters.clients
                )
                self._text.cut_all()
            self._gateway.stop()
            if self._gateway.app is not None:
                await self._gateway.app.end()
            self._fanout.stop()
            if self._ops_port is not None:
                closing.append(stop_listening(self._ops_port, inherited=True))
            await gatherResults(closing, consumeErrors=True)
        except Exception:
            # Whatever it is, the lease must still be given back.
            self.log.failure("stopping shard {number}", number=self.number)
        try:
            await self._hub.stop()
        except HubError as error:
            self.log.warn("leaving the hub: {error}", error=error)
        if was_ready:
            self.log.info("shard {number} has stopped", number=self.number)

    def _is_quiet(self) -> bool:
        """All that clients have said is taken by the hub, and all that came from it is delivered."""
        return not self._hub.counters.journal_publications and self._fanout.is_idle

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        # Two looks in a row: what the hub has taken last is still on its way back.
        seen = 0
        while seen < 2 and self._reactor.seconds() < deadline:
            seen = seen + 1 if done() else 0
            pause: Deferred[None] = Deferred()
            self._reactor.callLater(QUIET_POLL_SECONDS, pause.callback, None)
            await pause


def _limits(settings: Settings, admission: Admission) -> dict[str, float]:
    """Every limit in force, by the name of its setting."""
    node, hub, text = settings.node, settings.hub, settings.text
    return {
        "node.max_clients": admission.max_clients,
        "node.max_clients_per_address": admission.max_per_address,
        "node.max_http_connections": node.max_http_connections,
        "node.outbox_max_bytes": node.outbox_max_bytes,
        "node.inbox_max_bytes": node.inbox_max_bytes,
        "hub.journal_max_bytes": hub.journal_max_bytes,
        "hub.journal_max_publications": hub.journal_max_publications,
        **{
            f"app.{name}": getattr(settings.app, name)
            for name in settings.app.__struct_fields__
            if "max_" in name
        },
        "text.message_max_bytes": text.message_max_bytes,
        "text.max_messages_per_second": text.max_messages_per_second,
        "text.max_unacknowledged": text.max_unacknowledged,
        "text.max_unacknowledged_bytes": text.max_unacknowledged_bytes,
    }
