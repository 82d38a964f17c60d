"""What is told of an app to Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from spread.node.app.hooks import BUCKETS, Hooks

__all__ = ["families"]

_COUNTERS = {
    "calls": "Calls of hooks, methods and timers of the app.",
    "errors": "Of these, those that raised an error, or gave what they must not; the log has it.",
    "timeouts": "Of these, those that did not answer, or held up the shard, for app.hook_seconds.",
}
_BOUNDS = [*(str(bound) for bound in BUCKETS), "+Inf"]


def families(hooks: Hooks, blocks: int, timers: int) -> Iterable[Metric]:
    """All of it.

    :param blocks: times the app has held up the shard.
    :param timers: how many it has.
    """
    for name, text in _COUNTERS.items():
        family = CounterMetricFamily(f"spread_app_hook_{name}", text, labels=["hook"])
        for hook, stats in hooks.stats.items():
            family.add_metric([hook], getattr(stats, name))
        yield family
    seconds = HistogramMetricFamily(
        "spread_app_hook_seconds", "How long they took until their answer.", labels=["hook"]
    )
    for hook, stats in hooks.stats.items():
        counts = list(zip(_BOUNDS, accumulate(stats.counts), strict=True))
        seconds.add_metric([hook], buckets=counts, sum_value=stats.seconds)
    yield seconds
    yield GaugeMetricFamily("spread_app_hooks_waiting", "Of these, those that wait now.", value=hooks.waiting)
    yield CounterMetricFamily(
        "spread_app_blocks", "Times the app held up the shard for app.block_seconds or more.", value=blocks
    )
    yield GaugeMetricFamily("spread_app_timers", "Timers that the app has now.", value=timers)
