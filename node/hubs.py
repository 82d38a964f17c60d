"""From ``--hub`` to a hub: the one place where implementations are named.

memory:      a hub inside this process
embedded:    the Redis hub on the private Valkey of this machine, of which the shard becomes a user
redis…       the Redis hub; redis+cluster:// that on a cluster; several that on several servers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThreadPool

from spread.hub.address import HubAddress, parse_hub_addresses
from spread.hub.api import Hub, HubCounters
from spread.hub.cluster import ClusterHub
from spread.hub.embedded import EmbeddedEndpoint, EmbeddedServer, default_home
from spread.hub.errors import HubMisconfigured
from spread.hub.memory import Exchange, MemoryHub
from spread.hub.publish import JournalLimits
from spread.hub.redis import RedisHub, RedisHubSettings
from spread.hub.replicas import wait_seconds
from spread.hub.several import SeveralHub
from spread.hub.topology import TlsFiles, endpoint_of, server_endpoints
from spread.node.settings import HubSettings

__all__ = ["OpenedHub", "check_hub", "embedded_server", "open_hub"]


@dataclass(frozen=True, slots=True)
class OpenedHub:
    """A hub that is not started yet, and what must be done before it is."""

    hub: Hub
    prepare: Callable[[], Deferred[None]]
    """Find or start the server, where it is ours; may take as long as its data takes to load."""


def check_hub(reactor: Any, settings: HubSettings, is_fleet: bool, environ: Mapping[str, str]) -> str:
    """Everything that can be known to be wrong without connecting. Gives the name of the hub.

    :raises HubMisconfigured: the URL, a TLS file or the home of the embedded server cannot work.
    """
    addresses = parse_hub_addresses(settings.url)
    for address in addresses:
        _check_address(reactor, address, settings, is_fleet)
    embedded_server(settings, environ)
    return ",".join(address.name for address in addresses)


def _check_address(reactor: Any, address: HubAddress, settings: HubSettings, is_fleet: bool) -> None:
    if address.scheme == "memory" and is_fleet:
        raise HubMisconfigured("hub: memory: joins no shards; for several use embedded: or redis://…")
    if address.scheme in ("memory", "embedded") and settings.min_replicas:
        raise HubMisconfigured(f"hub: {address.scheme}: has no replicas; leave hub.min_replicas at 0")
    if not address.is_tls and (settings.tls_ca or settings.tls_cert):
        # Whoever gives these believes the connection to be encrypted.
        raise HubMisconfigured(
            f"hub: {address.scheme}: is never reached over TLS; remove hub.tls_*, or write rediss://..."
        )
    if address.scheme not in ("memory", "embedded"):
        endpoint_of(reactor, address, _tls(settings), settings.reply_seconds)


def embedded_server(settings: HubSettings, environ: Mapping[str, str]) -> EmbeddedServer | None:
    """The embedded server, if that is the hub.

    :raises HubMisconfigured: its home cannot work.
    """
    if parse_hub_addresses(settings.url)[0].scheme != "embedded":
        return None
    return EmbeddedServer(default_home(environ), fsync=settings.embedded_fsync)


def open_hub(
    reactor: Any,
    settings: HubSettings,
    incarnation: str,
    environ: Mapping[str, str],
    *,
    position_check_seconds: float = 40.0,
) -> OpenedHub:
    """The hub of a shard.

    :param incarnation: 16 hex digits that name this run of the shard.
    :param position_check_seconds: ``client.channel_position_check_delay``. A hub in memory loses nothing, so
        that there is nothing to check.
    :raises HubMisconfigured: the URL or a TLS file cannot work.
    """
    address, *others = parse_hub_addresses(settings.url)
    if address.scheme == "memory":
        exchange = Exchange(
            reactor,
            max_waiting=settings.journal_max_publications,
            publish_seconds=settings.publish_seconds,
        )
        memory = MemoryHub(
            exchange,
            incarnation,
            linger_seconds=settings.linger_seconds,
            ask_seconds=settings.ask_seconds,
        )
        return OpenedHub(memory, lambda: succeed(None))
    redis = RedisHubSettings(
        prefix=settings.prefix,
        start_seconds=settings.start_seconds,
        reply_seconds=settings.reply_seconds,
        linger_seconds=settings.linger_seconds,
        probe_seconds=settings.probe_seconds,
        ask_seconds=settings.ask_seconds,
        position_check_seconds=position_check_seconds,
        journal=JournalLimits(
            settings.publish_seconds,
            settings.journal_max_publications,
            settings.journal_max_bytes,
            settings.min_replicas,
            wait_seconds(settings.reply_seconds),
        ),
    )
    if address.is_cluster:
        node = server_endpoints(reactor, address, _tls(settings), settings.reply_seconds)
        return OpenedHub(ClusterHub(reactor, address, node, incarnation, redis), lambda: succeed(None))
    server = embedded_server(settings, environ)
    if server is None:

        def on(address: HubAddress) -> RedisHub:
            endpoint = endpoint_of(reactor, address, _tls(settings), settings.reply_seconds)
            return RedisHub(reactor, address, endpoint, incarnation, redis, counters=counters)

        counters = HubCounters() if others else None
        hubs = [on(each) for each in (address, *others)]
        whole = hubs[0] if counters is None else SeveralHub(reactor, hubs, counters)
        return OpenedHub(whole, lambda: succeed(None))

    def in_thread(function: Callable[[], None]) -> Callable[[], Deferred[None]]:
        return lambda: deferToThreadPool(reactor, reactor.getThreadPool(), function)

    hub = RedisHub(
        reactor,
        address,
        EmbeddedEndpoint(reactor, server, settings.reply_seconds),
        incarnation,
        redis,
        stopped=in_thread(server.leave),
    )
    return OpenedHub(hub, in_thread(server.enter))


def _tls(settings: HubSettings) -> TlsFiles:
    return TlsFiles(settings.tls_ca, settings.tls_cert, settings.tls_key)
