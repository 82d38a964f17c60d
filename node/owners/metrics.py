"""What is told of owned channels to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from spread.node.owners.counters import LATE_BUCKETS, OwnersCounters

__all__ = ["families"]

_COUNTERS = {
    "taken": "Channels that this shard has begun to own.",
    "taken_by_force": "Of these, from a shard that lives and did not hand them over in time.",
    "handed_over": "Channels handed over to another shard.",
    "fenced": "Channels whose next owner was found out by a refusal of the hub, or after a gap.",
    "suspensions": "Times this shard was not sure to be alive for the others.",
    "failed": "Objects that could not be made, and snapshots that could not be read.",
    "calls": "Commands called on this shard.",
    "asked_again": "Times a command was sent again, since nothing of it was done.",
    "unknown": "Commands of which the outcome will not be known.",
    "refused_full": "Commands, objects and reports refused because of a limit.",
    "ticks": "Ticks of all objects.",
    "ticks_skipped": "Ticks left out because they were too late, or the one before was not done.",
    "snapshots": "Snapshots saved.",
    "snapshots_failed": "Snapshots that could not be made or saved.",
}
_GAUGES = {
    "objects": "Channels that this shard owns now.",
    "members": "Members of channels, as reported to this shard.",
    "waiting": "Commands called here that are not answered, and commands for objects here that wait.",
    "snapshot_bytes": "Bytes of the last snapshot of any object.",
}


def families(counters: OwnersCounters, shards: int) -> Iterable[Metric]:
    """All of it.

    :param shards: how many are alive, as far as this one knows.
    """
    for name, text in _COUNTERS.items():
        yield CounterMetricFamily(f"spread_owners_{name}", text, value=getattr(counters, name))
    for name, text in _GAUGES.items():
        yield GaugeMetricFamily(f"spread_owners_{name}", text, value=getattr(counters, name))
    yield GaugeMetricFamily("spread_owners_shards", "Shards that live by their pulses.", value=shards)
    bounds = [*(str(bound) for bound in LATE_BUCKETS), "+Inf"]
    yield HistogramMetricFamily(
        "spread_tick_late_seconds",
        "How late ticks of objects began.",
        buckets=list(zip(bounds, accumulate(counters.late), strict=True)),
        sum_value=counters.late_seconds,
    )
