"""Metrics: every number that is counted is told, in a text that Prometheus can read."""

from __future__ import annotations

import pytest
from msgspec import NODEFAULT
from msgspec.structs import fields
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from spread.hub.api import HubCounters
from spread.node.metrics import ShardCounters, ShardMetrics


def exported(metrics: ShardMetrics) -> dict[str, Metric]:
    """By name what a Prometheus would read."""
    return {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}


def values(metrics: ShardMetrics) -> dict[float, str]:
    """Sample values and the names they are told under; ours only."""
    return {
        sample.value: sample.name
        for family in exported(metrics).values()
        if family.name.startswith("spread_")
        for sample in family.samples
    }


@pytest.mark.parametrize("counters", [ShardCounters, HubCounters])
def test_every_field_is_exported_under_a_name_of_its_own(
    counters: type[ShardCounters] | type[HubCounters],
) -> None:
    # Values that nothing else has.
    numbers = {field.name: 1000.0 + index for index, field in enumerate(fields(counters))}
    labelled = {field.name for field in fields(counters) if field.default_factory is not NODEFAULT}
    filled = counters(
        **{name: {7: number} if name in labelled else number for name, number in numbers.items()}  # type: ignore[arg-type]
    )
    if isinstance(filled, ShardCounters):
        found = values(ShardMetrics(filled, HubCounters()))
    else:
        found = values(ShardMetrics(ShardCounters(), filled))
    missing = [name for name, number in numbers.items() if number not in found]
    assert missing == []


def test_every_metric_has_help_and_a_type() -> None:
    for family in exported(ShardMetrics(ShardCounters(), HubCounters())).values():
        assert family.documentation
        assert family.type in ("counter", "gauge")


def test_gauges_and_counters() -> None:
    families = exported(ShardMetrics(ShardCounters(), HubCounters()))
    ours = {name: family for name, family in families.items() if name.startswith("spread_")}
    gauges = {name for name, family in ours.items() if family.type == "gauge"}
    assert gauges == {
        "spread_tables_bytes",
        "spread_clients",
        "spread_inbox_bytes",
        "spread_limit",
        "spread_longest_turn_seconds",
        "spread_subscriptions",
        "spread_hub_followed_channels",
        "spread_hub_subscribed_channels",
        "spread_hub_journal_publications",
        "spread_hub_journal_bytes",
        "spread_hub_groups",
        "spread_hub_servers_away",
    }


def test_numbers_are_read_when_they_are_asked_for() -> None:
    shard, hub = ShardCounters(), HubCounters()
    metrics = ShardMetrics(shard, hub)
    shard.clients = 3
    hub.missed_seconds = 1.5
    families = exported(metrics)
    assert families["spread_clients"].samples[0].value == 3
    assert families["spread_hub_missed_seconds"].samples[0].value == 1.5


def test_refusals_have_a_reason() -> None:
    samples = exported(ShardMetrics(ShardCounters(refused_full=1, refused_hub=2), HubCounters()))
    refused = {sample.labels["reason"]: sample.value for sample in samples["spread_refused"].samples}
    assert refused == {"full": 1, "address": 0, "hub": 2, "http": 0, "rate": 0}


def test_limits() -> None:
    metrics = ShardMetrics(ShardCounters(), HubCounters())
    metrics.set_limits({"node.max_clients": 10, "text.max_messages_per_second": 0.5})
    limits = {sample.labels["setting"]: sample.value for sample in exported(metrics)["spread_limit"].samples}
    assert limits == {"node.max_clients": 10, "text.max_messages_per_second": 0.5}


def test_the_process_is_told_of_too() -> None:
    names = exported(ShardMetrics(ShardCounters(), HubCounters())).keys()
    assert {"process_resident_memory_bytes", "process_open_fds", "python_gc_collections"} <= names


def test_two_shards_of_one_process_do_not_share_a_registry() -> None:
    first = ShardMetrics(ShardCounters(clients=1), HubCounters())
    second = ShardMetrics(ShardCounters(clients=2), HubCounters())
    told = [exported(one)["spread_clients"].samples[0].value for one in (first, second)]
    assert told == [1, 2]
