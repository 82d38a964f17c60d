"""The ways in for clients of the Centrifuge protocol, and for backends: puts together what they need.

On the HTTP port: WebSocket, HTTP streaming, server-sent events with their emulation endpoint, and the server
API, each at the path and under the switch of its section of the settings. On a port of its own: JSON lines.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.web.resource import Resource
from twisted.web.server import Site

from spread.hub.api import Hub
from spread.node.api.http import api_paths, api_resource
from spread.node.api.methods import Methods
from spread.node.app.deeds import KIND, without_app
from spread.node.app.host import AppHost
from spread.node.auth.verifiers import token_verifiers
from spread.node.channels import Channels
from spread.node.clients import Clients
from spread.node.codes import Disconnect
from spread.node.control import Control
from spread.node.cork import Cork
from spread.node.edge.emulation import emulation_resource
from spread.node.edge.http_stream import http_stream_resource
from spread.node.edge.jsonlines import JsonLinesFactory
from spread.node.edge.sse import sse_resource
from spread.node.edge.tables import TablesResource
from spread.node.edge.websocket import websocket_resource
from spread.node.limits import Admission
from spread.node.live_tables import LiveTables
from spread.node.metrics import ShardCounters
from spread.node.namespaces import Namespaces
from spread.node.owners.owners import Owners
from spread.node.owners.surroundings import Limits
from spread.node.pressure import Pressure
from spread.node.reactor import Turns
from spread.node.session.shared import Shared
from spread.node.settings import Settings
from spread.node.web.site import answering, quiet_site
from spread.node.wheel import Wheel

__all__ = ["Gateway"]


class Gateway:
    """The clients of one shard that speak the Centrifuge protocol, and what serves them.

    :param numbers: gives the numbers of sessions; shared with the text protocol.
    :param incarnation: what emulated clients know this shard by.
    :param number: that of the shard, once it has one.
    :param has_app: there is a team's own code.
    :param turns: of the reactor, if they are counted.
    :param steady: seconds by a clock that is never set.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        *,
        hub: Hub,
        channels: Channels,
        namespaces: Namespaces,
        pressure: Pressure,
        counters: ShardCounters,
        cork: Cork,
        admission: Admission,
        numbers: Iterator[int],
        incarnation: str,
        version: str,
        number: Callable[[], int | None],
        tables: LiveTables | None = None,
        has_app: bool = False,
        turns: Turns | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._counters = counters
        self._tables = tables
        self._wheel = Wheel(reactor)
        self.clients = Clients(reactor, admission, cork, numbers, settings.client.queue_max_size)
        self.control = Control(hub, self.clients, incarnation)
        self._verifiers = token_verifiers(settings.client, reactor, now=time.time)
        self.clients.control = self.control
        self.app: AppHost | None = None
        """Who runs the team's own code; ``None``: there is none."""
        self.owners: Owners | None = None
        """Its stateful channels, likewise."""
        if has_app:
            personal = settings.client.subscribe_to_user_personal_channel.enabled
            self.app = AppHost(
                reactor,
                settings.app,
                hub=hub,
                control=self.control,
                clients=self.clients,
                namespaces=namespaces,
                number=number,
                channels=channels,
                personal=namespaces.personal_channel if personal else None,
                turns=turns,
            )
            self.app.tables = tables
            self.owners = self.app.objects = Owners(
                reactor,
                steady,
                Limits(**{name: getattr(settings.app, name) for name in Limits.__dataclass_fields__}),
                hub=hub,
                host=self.app,
                relays=self.control,
                shard=incarnation,
            )
        else:
            self.control.on(KIND, without_app)
        self.clients.shared = Shared(
            clock=reactor,
            now=time.time,
            random=random.random,
            hub=hub,
            channels=channels,
            pressure=pressure,
            counters=counters,
            wheel=self._wheel,
            registry=self.clients,
            client=settings.client,
            namespaces=namespaces,
            tokens=self._verifiers.connection,
            subscription_tokens=self._verifiers.subscription,
            node=incarnation,
            version=f"spread {version}",
            hub_seconds=settings.hub.publish_seconds,
            tables=None if tables is None else lambda: tables.announcement,
            logic=self.app,
        )
        self._methods = Methods(hub, self.control, namespaces, counters)

    # -- what listens ------------------------------------------------------------------------------------

    def site(self) -> Site:
        """What the public HTTP port serves."""
        settings = self._settings
        resources: dict[str, Resource] = {"health": answering(lambda: (200, "application/json", b"{}"))}

        def put(prefix: str, resource: Resource) -> None:
            resources[prefix.strip("/")] = resource

        if not settings.websocket.disabled:
            put(settings.websocket.handler_prefix, websocket_resource(self.clients, settings))
        if settings.http_stream.enabled:
            put(settings.http_stream.handler_prefix, http_stream_resource(self.clients, settings))
        if settings.sse.enabled:
            put(settings.sse.handler_prefix, sse_resource(self.clients, settings))
        if settings.http_stream.enabled or settings.sse.enabled:
            put(
                settings.emulation.handler_prefix, emulation_resource(settings, self._forward, self._counters)
            )
        if not settings.http_api.disabled:
            api = api_resource(settings.http_api, self._methods)
            for path in api_paths(settings.http_api):
                put(path, api)
        if self._tables is not None:
            resources["tables/"] = TablesResource(self._tables, settings.client.allowed_origins)
        return quiet_site(self._reactor, resources)

    def json_factory(self) -> ServerFactory:
        """What the port for JSON lines serves."""
        return JsonLinesFactory(self.clients, self._settings, self._reactor)

    def _forward(self, node: str, session: str, data: bytes) -> Deferred[None]:
        """See ``edge.emulation.Forward``. A session that is gone is no error: the client will see it."""
        return self.control.emulate(node, session, data).addCallback(lambda _: None)

    # -- the end -----------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """No client is left."""
        return not self.clients.sessions

    def close(self) -> None:
        """Take no more clients. Idempotent."""
        self.clients.stop()

    def end_all(self, disconnect: Disconnect) -> None:
        """Tell all clients why, and end their connections."""
        self.clients.end_all(disconnect)

    def stop(self) -> None:
        """Drop who is left, and stop the timers. Idempotent."""
        self.clients.cut_all()
        self._wheel.stop()
        self._verifiers.stop()
