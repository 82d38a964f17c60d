"""Pictures of the results, through matplotlib, which only who wants pictures needs to install."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spread.client.bench.errors import BadRequest
from spread.client.bench.figures import BATCHED, ONE_BY_ONE
from spread.client.bench.measuring import Measured
from spread.client.bench.sweep import Sweep

__all__ = ["check", "draw", "draw_sweep"]

_SERVER, _REDIS, _LOOP, _OTHER = "#2b6cb0", "#c05621", "#718096", "#a0aec0"
_LATENCIES = {"p50_ms": "p50", "p90_ms": "p90", "p99_ms": "p99", "p999_ms": "p99.9"}


def check() -> None:
    """:raises BadRequest: matplotlib is not there."""
    _pyplot()


def _pyplot() -> Any:
    # By name, since it is not among what the type checkers see.
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError:
        raise BadRequest("charts need matplotlib: pip install 'spread-node[bench]'") from None


def draw(results: Sequence[Measured], directory: Path) -> list[Path]:
    """One picture for each workload; gives the files.

    :raises OSError: a file cannot be written.
    """
    pictures = []
    for workload in dict.fromkeys(measured.case.workload for measured in results if measured.runs):
        group = [measured for measured in results if measured.runs and measured.case.workload is workload]
        name = f"{workload.name.lower()}-{workload.value}.png"
        figure, axes = _pyplot().subplots(figsize=(9, 1.5 + 0.5 * len(group)), layout="constrained")
        if group[0].case.rate:
            _draw_latencies(axes, group)
        else:
            _draw_cpu(axes, group)
        axes.set_title(workload.title)
        pictures.append(_saved(figure, directory / name))
    return pictures


def _draw_cpu(axes: Any, group: Sequence[Measured]) -> None:
    """A bar for each case: CPU of the shards and of Redis; marks where the bare loops are."""
    places = range(len(group))
    shards = [_value(measured, "shard_us") for measured in group]
    axes.barh(places, shards, color=_SERVER, label="shards")
    redis = [_value(measured, "redis_us") for measured in group]
    axes.barh(places, redis, left=shards, color=_REDIS, label="Redis")
    for name, color, mark in ((ONE_BY_ONE, "black", "D"), (BATCHED, _LOOP, "o")):
        marks = [
            (figure.loops[name], place)
            for place, measured in zip(places, group, strict=True)
            if (figure := measured.figures.get("shard_us")) is not None and name in figure.loops
        ]
        if marks:
            label = "bare loop" if name == ONE_BY_ONE else name
            axes.plot(*zip(*marks, strict=True), mark, color=color, label=label)
    axes.set_yticks(places, [measured.case.name for measured in group])
    axes.invert_yaxis()
    axes.set_xlabel(
        "CPU of one " + ("connection" if group[0].case.is_idle else "delivery") + ", microseconds"
    )
    axes.legend()


def _draw_latencies(axes: Any, group: Sequence[Measured]) -> None:
    """A line for each case over the quantiles; broken ones for the bare loop."""
    for number, measured in enumerate(group):
        figures = measured.figures
        names = [name for name in _LATENCIES if name in figures]
        labels = [_LATENCIES[name] for name in names]
        color = f"C{number}"
        axes.plot(
            labels, [figures[name].median for name in names], "o-", color=color, label=measured.case.name
        )
        if names and all(ONE_BY_ONE in figures[name].loops for name in names):
            loops = [figures[name].loops[ONE_BY_ONE] for name in names]
            axes.plot(labels, loops, "--", color=color, alpha=0.5)
    axes.set_ylabel("milliseconds (broken: bare loop)")
    axes.set_ylim(bottom=0)
    axes.legend()


def draw_sweep(sweep: Sweep, points: Sequence[tuple[int, Measured]], directory: Path) -> Path:
    """CPU of a delivery over the number of whatever there is more and more of.

    :raises OSError: the file cannot be written.
    """
    figure, axes = _pyplot().subplots(figsize=(9, 5), layout="constrained")
    kinds = dict.fromkeys(
        (measured.case.format, measured.case.kind) for _, measured in points if measured.runs
    )
    for number, (format, kind) in enumerate(kinds):
        mine = [
            (point, measured)
            for point, measured in points
            if measured.runs and (measured.case.format, measured.case.kind) == (format, kind)
        ]
        numbers = [point for point, _ in mine]
        color = f"C{number}"
        name = f"{format.value} {kind}"
        axes.plot(
            numbers,
            [_value(each, "shard_us") for _, each in mine],
            "o-",
            color=color,
            label=f"{name}, shards",
        )
        axes.plot(
            numbers, [_value(each, "redis_us") for _, each in mine], "s:", color=color, label=f"{name}, Redis"
        )
        loops = [
            (point, each.figures["shard_us"].loops[ONE_BY_ONE])
            for point, each in mine
            if "shard_us" in each.figures and ONE_BY_ONE in each.figures["shard_us"].loops
        ]
        if loops:
            axes.plot(*zip(*loops, strict=True), "--", color=_OTHER, label=f"{name}, bare loop")
    if sweep is Sweep.CHANNELS:
        axes.set_xscale("log")
    axes.set_xlabel(sweep.title)
    axes.set_ylabel("CPU of one delivery, microseconds")
    axes.set_ylim(bottom=0)
    axes.legend()
    return _saved(figure, directory / f"sweep-{sweep.value}.png")


def _value(measured: Measured, name: str) -> float:
    figure = measured.figures.get(name)
    return figure.median if figure is not None else 0.0


def _saved(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)
    return path
