"""The results: tables for people, and JSON for programs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from spread.client.bench.figures import BATCHED, ONE_BY_ONE, SERVER, Figure
from spread.client.bench.measuring import Measured

__all__ = ["as_json", "faults_of", "notes_of", "number", "table", "tables"]

_NOISE_CORES = 0.15
_BUSY = 0.97

Column = tuple[str, Callable[[Measured], str]]


def number(value: float) -> str:
    """Three digits that count, or all before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(name: str) -> Column:
    def cell(measured: Measured) -> str:
        figure = measured.figures.get(name)
        if figure is None:
            return "-"
        if len(figure.values) == 1:
            return number(figure.median)
        return f"{number(figure.median)} ({number(figure.least)}-{number(figure.most)})"

    return name, cell


def _median(name: str) -> Column:
    def cell(measured: Measured) -> str:
        figure = measured.figures.get(name)
        return "-" if figure is None else number(figure.median)

    return name, cell


def _times(name: str, loop: str = ONE_BY_ONE) -> Column:
    def cell(measured: Measured) -> str:
        figure: Figure | None = measured.figures.get(name)
        return f"x{figure.ratios[loop]:.2f}" if figure is not None and loop in figure.ratios else ""

    return loop, cell


def _with_times(name: str) -> list[Column]:
    return [_median(name), _times(name)]


_HEADS = {
    "deliveries_per_second": "deliveries/s",
    "messages_per_second": "messages/s",
    "shard_us": "shards us",
    "shard_user_us": "user",
    "shard_system_us": "system",
    "redis_us": "Redis us",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "connects_per_second": "connects/s",
    "connect_p50_ms": "p50 ms",
    "connect_p99_ms": "p99 ms",
    "rss_bytes": "RSS bytes",
    ONE_BY_ONE: "loop",
    BATCHED: "batched",
}

_CPU = [
    _range("shard_us"),
    _times("shard_us"),
    _times("shard_us", BATCHED),
    _median("shard_user_us"),
    _median("shard_system_us"),
    _median("redis_us"),
]
_CASE: Column = ("", lambda measured: measured.case.name)

_BUSY_COLUMNS = [
    _CASE,
    _range("deliveries_per_second"),
    _times("deliveries_per_second"),
    _median("messages_per_second"),
    *_CPU,
    *_with_times("p50_ms"),
    *_with_times("p99_ms"),
]
_PACED_COLUMNS = [
    _CASE,
    _median("deliveries_per_second"),
    *(column for column in _CPU if column[0] != BATCHED),
    *(column for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms") for column in _with_times(name)),
]
_IDLE_COLUMNS = [
    _CASE,
    _range("connects_per_second"),
    _times("connects_per_second"),
    *(column for column in _CPU if column[0] != BATCHED),
    *_with_times("connect_p50_ms"),
    *_with_times("connect_p99_ms"),
    _range("rss_bytes"),
]

_GROUPS: list[tuple[str, Callable[[Measured], bool], list[Column]]] = [
    (
        "As fast as it goes; CPU for one delivery",
        lambda measured: bool(measured.case.in_flight),
        _BUSY_COLUMNS,
    ),
    ("At a fixed rate; CPU for one delivery", lambda measured: bool(measured.case.rate), _PACED_COLUMNS),
    (
        "Connecting, then idle; CPU and memory for one connection",
        lambda measured: measured.case.is_idle,
        _IDLE_COLUMNS,
    ),
]


def table(columns: Sequence[Column], results: Sequence[Measured]) -> list[str]:
    """Lines; a column of which nothing is known is left out."""
    rows = [[cell(measured) for _, cell in columns] for measured in results]
    kept = [i for i in range(len(columns)) if any(row[i] not in ("", "-") for row in rows)]
    heads = [_HEADS.get(columns[i][0], columns[i][0]) for i in kept]
    cells = [heads, *([row[i] for i in kept] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(kept))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def tables(results: Sequence[Measured], repeat: int) -> str:
    """All results."""
    results = [measured for measured in results if measured.runs]
    parts = []
    for title, belongs, columns in _GROUPS:
        group = [measured for measured in results if belongs(measured)]
        if group:
            parts.append("\n".join([title, "", *table(columns, group)]))
    if not parts:
        return ""
    rounds = f"medians of {repeat} rounds, (least-most)" if repeat > 1 else "one round"
    has_loops = any(len(round) > 1 for measured in results for round in measured.runs)
    told = "; xN is N times the bare loop of send()" if has_loops else ""
    parts.append("\n".join([f"us are microseconds; {rounds}{told}.", *notes_of(results)]))
    return "\n\n".join(parts) + "\n"


def notes_of(results: Sequence[Measured]) -> list[str]:
    """What to be wary of."""
    notes = []
    samples = [sample for measured in results for round in measured.runs for sample in round.values()]
    other = median([sample.other_cores for sample in samples]) if samples else 0.0
    stolen = median([sample.stolen for sample in samples]) if samples else 0.0
    if other > _NOISE_CORES:
        notes.append(f"Noise: other programs used {other:.2f} cores meanwhile (median of the runs).")
    if stolen > _NOISE_CORES / 3:
        notes.append(f"Noise: the host took away {stolen:.2f} cores meanwhile (median of the runs).")
    for measured in results:
        mine = [round[SERVER] for round in measured.runs]
        if median([sample.busy for sample in mine]) > _BUSY:
            notes.append(
                f"{measured.case.name}: the generator was busy all the time; the server could do more."
            )
    return notes


def faults_of(results: Sequence[Measured]) -> list[str]:
    """What should not have been, a line for each case."""
    return [
        f"{measured.case.name}: " + ", ".join(f"{count:,} {name}" for name, count in measured.faults.items())
        for measured in results
        if measured.faults
    ]


def as_json(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """All results, as they were measured."""
    return [
        {
            "name": measured.case.name,
            "case": {
                **asdict(measured.case),
                "workload": measured.case.workload.name,
                "format": measured.case.format.value,
                "token": bool(measured.case.token),
            },
            "figures": {name: figure.as_json() for name, figure in measured.figures.items()},
            "faults": measured.faults,
            "runs": [{who: asdict(sample) for who, sample in round.items()} for round in measured.runs],
        }
        for measured in results
    ]
