"""Medians and ratios. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from spread.client.bench.processes import Server, Usage
from spread.client.bench.protocol import Opened, Quantiles, Result

__all__ = [
    "BATCHED",
    "NAMES",
    "ONE_BY_ONE",
    "SERVER",
    "Figure",
    "Sample",
    "figures_of",
    "idle_sample",
    "sample_of",
]

SERVER, ONE_BY_ONE, BATCHED = "server", "loop", "batched loop"
"""What is measured: the server, and the two bare loops it is compared with."""

NAMES: Mapping[str, str] = {
    "deliveries_per_second": "deliveries/s",
    "messages_per_second": "messages/s",
    "shard_us": "shards, us of CPU",
    "shard_user_us": "of it user",
    "shard_system_us": "of it system",
    "redis_us": "Redis, us of CPU",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "connects_per_second": "connects/s",
    "connect_p50_ms": "connect p50 ms",
    "connect_p99_ms": "connect p99 ms",
    "rss_bytes": "bytes of RSS",
}
"""What is measured. CPU is for one delivery, and for one connection where clients are idle; so is memory."""

_NOT_COMPARED = {"shard_user_us", "shard_system_us", "rss_bytes"}
"""The bare loop has next to nothing of it."""


_FAULTS = ("lost", "doubled", "reordered", "misrouted", "damaged")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run gave."""

    values: Mapping[str, float]
    """By the names above; what could not be measured is not there."""
    faults: Mapping[str, int]
    """Deliveries lost, doubled, reordered, misrouted, damaged."""
    busy: float = 0.0
    """The generator's share of a core."""
    shard_cores: float = 0.0
    """The shards' share."""
    other_cores: float = 0.0
    """What the machine was busy with besides, in cores."""
    stolen: float = 0.0
    """Share of the time that the host took away, in cores."""
    deliveries_per_read: float = 0.0
    frame_bytes: float = 0.0
    late_ms: float = 0.0
    """How late the generator published what was due, at worst."""

    @property
    def is_clean(self) -> bool:
        return not any(self.faults.values())


def sample_of(result: Result, servers: Sequence[Server]) -> Sample:
    """What a run gave.

    :param servers: whose CPU was read, in this order.
    """
    seconds = result.seconds
    values = {
        "deliveries_per_second": result.deliveries / seconds,
        "messages_per_second": result.messages / seconds,
        **_latencies("", result.latency_ns),
    }
    shards, redis = _sums(zip(servers, (Usage(*used) for used in result.cpu), strict=True))
    if result.deliveries:
        values |= _all_cpu(shards, redis, result.deliveries, servers)
    ours = shards.total + redis.total + result.busy * seconds
    return Sample(
        values,
        {name: getattr(result, name) for name in _FAULTS},
        busy=result.busy,
        shard_cores=shards.total / seconds,
        other_cores=max(0.0, (result.machine_busy - ours) / seconds),
        stolen=result.machine_stolen / seconds,
        deliveries_per_read=result.deliveries / result.reads if result.reads else 0.0,
        frame_bytes=result.bytes / result.deliveries if result.deliveries else 0.0,
        late_ms=result.late_ns / 1e6,
    )


def _sums(used: Iterable[tuple[Server, Usage]]) -> tuple[Usage, Usage]:
    """Of the shards, and of Redis."""
    shards = redis = Usage(0.0, 0.0, 0.0)
    for server, usage in used:
        if server.is_redis:
            redis += usage
        else:
            shards += usage
    return shards, redis


def idle_sample(
    opened: Opened,
    before: Sequence[Usage],
    after: Sequence[Usage],
    growth: int | None,
    servers: Sequence[Server],
) -> Sample:
    """What connecting some clients gave.

    :param before: what the servers had used, in their order; nothing else has kept them busy since.
    :param growth: bytes by which the shards grew; ``None``: not known.
    """
    values = {"connects_per_second": opened.clients / opened.seconds}
    values |= {
        name: value for name, value in _latencies("connect_", opened.connect_ns).items() if name in NAMES
    }
    used = [end - begin for begin, end in zip(before, after, strict=True)]
    values |= _all_cpu(*_sums(zip(servers, used, strict=True)), opened.clients, servers)
    if growth is not None:
        values["rss_bytes"] = growth / opened.clients
    return Sample(values, {})


def _latencies(prefix: str, of: Quantiles) -> dict[str, float]:
    return {f"{prefix}{name}_ms": getattr(of, name) / 1e6 for name in ("p50", "p90", "p99", "p999")}


def _all_cpu(shards: Usage, redis: Usage, count: float, servers: Sequence[Server]) -> dict[str, float]:
    """CPU for each of ``count``. How user and system share it is counted more coarsely than the sum."""
    values = {}
    if any(not server.is_redis for server in servers):
        counted = shards.user + shards.system
        share = shards.user / counted if counted else 0.0
        each = shards.total / count * 1e6
        values = {"shard_us": each, "shard_user_us": each * share, "shard_system_us": each * (1 - share)}
    if any(server.is_redis for server in servers):
        values["redis_us"] = redis.total / count * 1e6
    return values


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing, measured several times."""

    values: tuple[float, ...]
    loops: Mapping[str, float]
    """The medians of the bare loops, by their names."""
    ratios: Mapping[str, float]
    """To the bare loops: the medians of the ratios of neighbours in time."""

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "least": self.least,
            "most": self.most,
            "times": dict(self.ratios),
            "loops": dict(self.loops),
            "all": self.values,
        }


def figures_of(runs: Sequence[Mapping[str, Sample]]) -> dict[str, Figure]:
    """Figures from the runs of a case.

    :param runs: of each round, the samples of the server, and of the loops it is compared with.
    """
    figures = {}
    for name in NAMES:
        values = [round[SERVER].values[name] for round in runs if name in round[SERVER].values]
        if values:
            figures[name] = Figure(tuple(values), *_compared(name, runs))
    return figures


def _compared(name: str, runs: Sequence[Mapping[str, Sample]]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of the loops, and of the ratios to them."""
    theirs: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for round in runs:
        for who, sample in round.items():
            value = sample.values.get(name)
            if who == SERVER or not value or name in _NOT_COMPARED:
                continue
            theirs.setdefault(who, []).append(value)
            if name in round[SERVER].values:
                ratios.setdefault(who, []).append(round[SERVER].values[name] / value)
    return _medians(theirs), _medians(ratios)


def _medians(of: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in of.items()}
