"""What a shard counts. On the message path a metric is one addition to a plain number; Prometheus'
objects are made when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from spread.hub.api import HubCounters
from spread.node.codes import DISCONNECTS, ERRORS
from spread.node.reactor import Turns

__all__ = ["ShardCounters", "ShardMetrics"]


class ShardCounters(msgspec.Struct, kw_only=True):
    """Plain numbers of one shard."""

    clients: int = 0
    connects: int = 0
    spread: int = 0
    deliveries: int = 0
    encoded: int = 0
    framed: int = 0
    not_encoded: int = 0
    messages_in: int = 0
    refused_full: int = 0
    refused_address: int = 0
    refused_hub: int = 0
    refused_http: int = 0
    refused_rate: int = 0
    emulation_refused: int = 0
    slow_clients: int = 0
    too_long: int = 0
    rate_limited: int = 0
    publish_errors: int = 0
    reading_pauses: int = 0
    inbox_bytes: int = 0
    inbox_pauses: int = 0
    pressed: int = 0
    rests: int = 0
    held_publishers: int = 0
    views_seen: int = 0
    superseded: int = 0
    lens_errors: int = 0
    pings: int = 0
    subscriptions: int = 0
    tables_reloads: int = 0
    tables_refused: int = 0
    tables_bytes: int = 0
    errors: dict[int, int] = msgspec.field(default_factory=lambda: dict.fromkeys(ERRORS, 0))
    disconnects: dict[int, int] = msgspec.field(default_factory=lambda: dict.fromkeys(DISCONNECTS, 0))
    api_calls: dict[str, int] = msgspec.field(default_factory=dict)
    """By method."""
    api_errors: dict[int, int] = msgspec.field(default_factory=dict)
    """By the code of the error, or the HTTP status of what was no call."""


_SHARD_COUNTERS = {
    "connects": "Connections accepted.",
    "spread": "Publications fanned out to members of this shard.",
    "deliveries": "Members that publications were fanned out to.",
    "encoded": "Events encoded; once for each protocol, however many members get them.",
    "framed": "Frames made of them; once for each protocol and transport.",
    "not_encoded": "Publications that a protocol cannot carry (bytes that are no JSON, to JSON clients).",
    "messages_in": "Messages and frames received from clients.",
    "emulation_refused": "Emulation requests refused because too many were on their way.",
    "pings": "Pings sent to clients of the Centrifuge protocol.",
    "slow_clients": "Clients closed because their outbox was over outbox_max_bytes.",
    "too_long": "Clients closed for a message over message_max_bytes.",
    "rate_limited": "Messages refused by max_messages_per_second.",
    "publish_errors": "Messages that the hub did not take.",
    "reading_pauses": "Times a client was not read because max_unacknowledged messages were on their way.",
    "pressed": "Times a channel was pressed because a member here was over half of outbox_max_bytes.",
    "rests": "Times the fan-out rested for 5 ms because a member here was over half of outbox_max_bytes.",
    "held_publishers": "Times a client was not read for a moment because its channel was pressed.",
    "tables_reloads": "Times the tables were replaced by new ones.",
    "tables_refused": "Times new tables were broken, so that the old ones stayed.",
    "views_seen": "Publications that the app was asked about for the members of one view.",
    "superseded": "Publications that a newer one replaced before a slow client was sent them.",
    "lens_errors": "Errors of the app's see and latest: nothing was delivered to a view, or it had no key.",
    "inbox_pauses": "Times the hub was not read because the inbox was over inbox_max_bytes.",
}
_REFUSED = {
    "full": "refused_full",
    "address": "refused_address",
    "hub": "refused_hub",
    "http": "refused_http",
    "rate": "refused_rate",
}
_SHARD_LABELS = {
    "errors": ("code", "Commands of clients answered with an error, by its code."),
    "disconnects": ("code", "Clients of the Centrifuge protocol gone or disconnected, by the code."),
    "api_calls": ("method", "Calls of the HTTP server API, also those within a batch."),
    "api_errors": ("code", "Errors of such calls, by their code or HTTP status."),
}
_SHARD_GAUGES = {
    "clients": "Clients connected now.",
    "subscriptions": "Subscriptions of clients of the Centrifuge protocol now.",
    "inbox_bytes": "Bytes of publications received and not yet fanned out.",
    "tables_bytes": "Bytes of the files of all tables.",
}
_HUB_COUNTERS = {
    "published": "Publications the hub has taken.",
    "publish_retries": "Publications sent again after an unknown outcome or a 'later'.",
    "publish_failures": "Publications the hub did not take in time.",
    "publish_unreplicated": "Publications that were kept, and not acknowledged for want of replicas.",
    "received": "Publications received from the hub.",
    "duplicates": "Publications received twice and dropped.",
    "malformed": "Messages on our channels that are none of ours.",
    "unknown_versions": "Messages of another release's envelope.",
    "reconnects": "Links that came up again.",
    "deaf_links": "Subscriber links cut because a probe did not arrive.",
    "missed_windows": "Times the hub was out of hearing.",
    "missed_seconds": "Seconds the hub was out of hearing.",
    "repaired": "Publications filled in from the history, because the link had not brought them.",
    "broken": "Times publications of a channel were missing and could not be had.",
    "questions": "Questions put to other shards, and to this one.",
    "unanswered": "Questions that not all shards asked have answered in time.",
    "presence_restored": "Clients put back into the presence of a channel, after an outage.",
    "removals_dropped": "Clients that left while the hub was away and are present until they expire.",
    "leaves_of_dead_shards": "Leaves published for clients of shards that had died.",
    "shards_reaped": "Dead shards that this one has cleared up after.",
    "redirects": "Answers of a cluster's node that a slot is elsewhere.",
    "refreshes": "Times the nodes of a cluster have told who serves which slots.",
}
_HUB_GAUGES = {
    "subscribed_channels": "Channels this shard hears.",
    "followed_channels": "Of these, channels that keep history, whose positions are followed.",
    "journal_publications": "Publications not yet taken by the hub.",
    "journal_bytes": "Bytes of publications not yet taken by the hub.",
    "groups": "Primaries of a cluster that this shard is connected to, or tries to be.",
    "servers_away": "Servers of the hub, or primaries of a cluster, whose channels wait.",
}


class ShardMetrics(Collector):
    """The counters as Prometheus metrics, read when they are asked for."""

    def __init__(self, shard: ShardCounters, hub: HubCounters, turns: Turns | None = None) -> None:
        self._shard = shard
        self._hub = hub
        self._turns = turns or Turns()
        self._limits: dict[str, float] = {}
        self._more: list[Callable[[], Iterable[Metric]]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def set_limits(self, limits: dict[str, float]) -> None:
        """The limits in force, by the name of their setting."""
        self._limits = limits

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """More metrics: called whenever somebody asks for them."""
        self._more.append(collect)

    def text(self) -> bytes:
        """The exposition format of Prometheus, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        for prefix, source, counters, gauges in (
            ("spread", self._shard, _SHARD_COUNTERS, _SHARD_GAUGES),
            ("spread_hub", self._hub, _HUB_COUNTERS, _HUB_GAUGES),
        ):
            for name, text in counters.items():
                yield CounterMetricFamily(f"{prefix}_{name}", text, value=getattr(source, name))
            for name, text in gauges.items():
                yield GaugeMetricFamily(f"{prefix}_{name}", text, value=getattr(source, name))
        yield CounterMetricFamily(
            "spread_long_turns",
            "Turns of the reactor over 50 ms: all clients wait for so long.",
            self._turns.long,
        )
        longest = "The longest turn of the reactor since the start."
        yield GaugeMetricFamily("spread_longest_turn_seconds", longest, self._turns.longest_seconds)
        refused = CounterMetricFamily("spread_refused", "Connections refused, by reason.", labels=["reason"])
        for reason, name in _REFUSED.items():
            refused.add_metric([reason], getattr(self._shard, name))
        yield refused
        for field, (label, text) in _SHARD_LABELS.items():
            labelled = CounterMetricFamily(f"spread_{field}", text, labels=[label])
            for value, number in getattr(self._shard, field).items():
                labelled.add_metric([str(value)], number)
            yield labelled
        limit = GaugeMetricFamily("spread_limit", "Limits in force; 0 is none.", labels=["setting"])
        for setting, value in sorted(self._limits.items()):
            limit.add_metric([setting], value)
        yield limit
        for collect in self._more:
            yield from collect()
