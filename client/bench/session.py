"""A whole benchmark: prepared, measured case by case, told."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from spread.client.bench import charts, report
from spread.client.bench.cluster import Cluster, started
from spread.client.bench.cpus import Cpus, Pinning, pinned_to, pinning
from spread.client.bench.engine import Programs, programs
from spread.client.bench.errors import BadRequest, CutShort
from spread.client.bench.measuring import Bench, Measured, measure
from spread.client.bench.plan import Case, Options, cases
from spread.client.bench.processes import Server
from spread.client.bench.progress import Progress
from spread.client.bench.sweep import Sweep, points_of
from spread.client.bench.where import Where, pointed_at, servers_of

__all__ = ["Request", "run"]

DONE, FAILED = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line, checked word by word."""

    options: Options
    sweep: Sweep | None = None
    points: tuple[int, ...] = ()
    hub: str = ""
    where: Where | None = None
    """A cluster that runs already; else one is started."""
    pids: tuple[int, ...] = ()
    cpu_servers: Cpus | None = None
    cpu_load: Cpus | None = None
    json_file: Path | None = None
    charts_directory: Path | None = None


def run(request: Request, out: TextIO, err: TextIO, environ: Mapping[str, str]) -> int:
    """Measure what was asked for; gives the exit code.

    :raises BadRequest: it cannot be had; nothing has been started.
    """
    if sys.platform != "linux":
        raise BadRequest("only on Linux: it measures with epoll and /proc")
    points = _points(request)
    _prepare(request, [case for _, case in points])
    bench = _bench(request, environ)
    if bench.programs.coarse_because:
        print(
            f"spread: warning: {bench.programs.coarse_because}; the load generator is in Python: its figures "
            "are coarser, and there are no ratios to a bare loop",
            file=err,
        )
    print(f"spread: {bench.pinning}", file=err)
    results = [(point, Measured(case)) for point, case in points]
    measured = [each for _, each in results]
    why = _measure_all(measured, bench, err)
    print_to(report.tables(measured, request.options.repeat), out)
    told = _tell(request, bench, results, why, err)
    for line in [*([why] if why else []), *report.faults_of(measured), *told]:
        print(f"spread: error: {line}", file=err)
    return FAILED if why or told or report.faults_of(measured) else DONE


def print_to(text: str, out: TextIO) -> None:
    """It is no error that nobody reads it."""
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # or the interpreter tries again at its end
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def _points(request: Request) -> Sequence[tuple[int, Case]]:
    """The cases, in a sweep with how many there are of what is swept."""
    options = request.options
    if request.where is not None:
        options = replace(options, shards=request.where.shards)
    if request.sweep is not None:
        points = request.points or request.sweep.default_points
        return points_of(request.sweep, points, options)
    return [(0, case) for case in cases(options)]


def _prepare(request: Request, all_cases: Sequence[Case]) -> None:
    """:raises BadRequest: something is missing that will be needed."""
    if request.charts_directory is not None:
        charts.check()
    if request.json_file is not None:
        try:
            request.json_file.touch()
        except OSError as error:
            raise BadRequest(f"--json {request.json_file}: {error.strerror}") from None
    needed = max(all_cases, key=lambda case: case.files)
    raise_file_limit(needed.files, needed.name)


def raise_file_limit(needed: int, what: str) -> None:
    """Children inherit it.

    :raises BadRequest: so many files cannot be had.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))  # root may
        except (OSError, ValueError):
            raise BadRequest(
                f"{what} needs {needed:,} open files, and this process may have {hard:,}: raise the limit "
                f"(ulimit -Hn {needed}), or ask for fewer clients"
            ) from None
    elif soft < hard or hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard > 0 else max(soft, needed), hard))


def _bench(request: Request, environ: Mapping[str, str]) -> Bench:
    servers = servers_of(request.pids)
    allowed = os.sched_getaffinity(0)
    where, cpu_servers = request.where, request.cpu_servers
    if where is not None and servers and cpu_servers is None:
        # They are pinned by whoever started them, or not; the bare loop goes where they are.
        cpu_servers = frozenset(os.sched_getaffinity(servers[0].pid)) & allowed or None
    pins = pinning(allowed, cpu_servers, request.cpu_load)
    found: Programs = programs(environ)
    starting: Callable[[int], AbstractContextManager[Cluster]]
    if where is not None:
        starting = lambda _shards: pointed_at(where, servers)  # noqa: E731
    else:
        starting = partial(_start, request.hub, servers, pins, environ)
    return Bench(
        options=request.options,
        programs=found,
        pinning=pins,
        starting=starting,
        is_ours=where is None,
        is_here=where is None or where.is_here,
    )


def _start(
    hub: str, redis: Sequence[Server], pins: Pinning, environ: Mapping[str, str], shards: int
) -> AbstractContextManager[Cluster]:
    return started(shards, hub=hub, redis=redis, servers_on=pins.servers, load_on=pins.load, environ=environ)


def _measure_all(results: Sequence[Measured], bench: Bench, err: TextIO) -> str:
    """Why it ended before its time; empty if it did not."""
    progress = Progress(err, [measured.case for measured in results], bench.options)
    bench = replace(bench, step=progress.step)
    try:
        with _stoppable(), pinned_to(bench.pinning.load):
            for measured in results:
                progress.begin()
                measure(measured, bench)
    except (CutShort, ProcessLookupError) as error:
        progress.clear()
        return f"{progress.name}: {error}"
    progress.clear()
    return ""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and the like end the run, in order: once is enough, for what is left to do takes seconds."""
    signals = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    ]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise CutShort(f"stopped by {signal.Signals(number).name}")

    before = [signal.signal(each, stop) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _tell(
    request: Request, bench: Bench, results: Sequence[tuple[int, Measured]], why: str, err: TextIO
) -> list[str]:
    """Write the files that were asked for; what went wrong with them."""
    measured = [each for _, each in results if each.runs]
    try:
        if request.json_file is not None:
            request.json_file.write_text(json.dumps(_document(request, bench, results, why), indent=1) + "\n")
        if request.charts_directory is not None and measured:
            if request.sweep is not None:
                pictures = [charts.draw_sweep(request.sweep, results, request.charts_directory)]
            else:
                pictures = charts.draw(measured, request.charts_directory)
            print("spread: drawn: " + ", ".join(map(str, pictures)), file=err)
    except OSError as error:
        return [f"{error.filename}: {error.strerror}"]
    return []


def _document(
    request: Request, bench: Bench, results: Sequence[tuple[int, Measured]], why: str
) -> dict[str, Any]:
    options = request.options
    return {
        "spread": version("spread-node"),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpu": _cpu_model(),
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "pinning": str(bench.pinning),
        "generator": "Python" if bench.programs.coarse_because else "C",
        "hub": "given" if request.hub else "embedded" if bench.is_ours else "unknown",
        "seconds": options.seconds,
        "warm": options.warm,
        "repeat": options.repeat,
        "sweep": request.sweep.value if request.sweep is not None else None,
        "cut_short": why or None,
        "results": [
            {"point": point, **told}
            for (point, _), told in zip(results, report.as_json([each for _, each in results]), strict=True)
        ],
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
