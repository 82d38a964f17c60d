"""One case is measured: the server and the bare loops in turn, as often as asked for.

All clients of both are connected at the same time, and one side rests while the other runs. So neighbours in
time are compared, and a machine that slows down for a minute slows down both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace

from spread.client.bench.cluster import Cluster
from spread.client.bench.cpus import Pinning
from spread.client.bench.engine import Generator, Loop, Programs
from spread.client.bench.figures import (
    BATCHED,
    ONE_BY_ONE,
    SERVER,
    Figure,
    Sample,
    figures_of,
    idle_sample,
    sample_of,
)
from spread.client.bench.plan import Case, Options
from spread.client.bench.processes import Server, resident_bytes, usage_of
from spread.client.bench.protocol import Opening

__all__ = ["Bench", "Measured", "measure"]

_FIRST_CLIENTS = 20
"""Idle clients that come and go before memory is read: what is loaded once is not a client's."""

_SETTLED_SECONDS = 0.2
_SETTLE_SECONDS = 3.0
"""Memory is read when it has not changed for the first time, or after the second."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs besides a case."""

    options: Options
    programs: Programs
    pinning: Pinning
    starting: Callable[[int], AbstractContextManager[Cluster]]
    """A cluster with so many shards."""
    step: Callable[[str], None] = lambda _: None
    """Told what is being done."""
    is_ours: bool = True
    """The cluster is started by us: anew for each round in which memory is measured."""
    is_here: bool = True
    """The cluster is on this machine, so that the bare loop can be compared with it."""


@dataclass(slots=True)
class Measured:
    """A case, and what it gave."""

    case: Case
    runs: list[Mapping[str, Sample]] = field(default_factory=list)
    """Of each round, the samples of the server and of the loops."""

    @property
    def figures(self) -> dict[str, Figure]:
        return figures_of(self.runs)

    @property
    def faults(self) -> dict[str, int]:
        """Of all runs of the server."""
        total: dict[str, int] = {}
        for round in self.runs:
            for name, count in round[SERVER].faults.items():
                total[name] = total.get(name, 0) + count
        return {name: count for name, count in total.items() if count}


def measure(into: Measured, bench: Bench) -> None:
    """Measure a case; each round is in ``into`` as soon as it is over.

    :raises CutShort: something ended before its time.
    """
    if into.case.is_idle:
        _measure_idle(into, bench)
    else:
        _measure_busy(into, bench)


# -- with messages -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Target:
    """What is measured: the server, or a loop; with its clients."""

    name: str
    generator: Generator
    servers: Sequence[Server]
    frame_bytes: float

    def measured(self, case: Case, options: Options) -> Sample:
        result = self.generator.run(case.run(options, (server.pid for server in self.servers)))
        return sample_of(result, self.servers)


def _measure_busy(into: Measured, bench: Bench) -> None:
    case, options = into.case, bench.options
    with ExitStack() as stack:
        bench.step("starting the cluster")
        cluster = stack.enter_context(bench.starting(case.shards))
        targets = [_server(stack, case, bench, cluster)]
        if bench.programs.loop and bench.is_here:
            frame_bytes = targets[0].frame_bytes
            targets.append(_loop(stack, case, bench, ONE_BY_ONE, frame_bytes, cluster))
            if case.batching_matters:
                targets.append(_loop(stack, case, bench, BATCHED, frame_bytes, cluster))
        for number in range(options.repeat):
            round = {}
            for target in targets:
                bench.step(f"round {number + 1} of {options.repeat}, {target.name}")
                round[target.name] = target.measured(case, options)
            into.runs.append(round)


def _server(stack: ExitStack, case: Case, bench: Bench, cluster: Cluster) -> _Target:
    if case.idle_clients:
        bench.step(f"connecting {case.idle_clients:,} idle clients")
        idle = Generator(bench.programs.generator, bench.pinning.load, cluster.watch)
        stack.enter_context(idle).open(case.idle_opening(cluster))
    generator = Generator(bench.programs.generator, bench.pinning.load, cluster.watch)
    stack.enter_context(generator)
    opening = case.opening(cluster)
    bench.step(f"connecting {opening.clients:,} clients")
    _, heard = generator.open(opening)
    assert heard is not None
    return _Target(SERVER, generator, cluster.servers, heard.frame_bytes)


def _loop(
    stack: ExitStack, case: Case, bench: Bench, name: str, frame_bytes: float, cluster: Cluster
) -> _Target:
    bench.step("connecting to the bare loop")
    loop = stack.enter_context(_new_loop(case, bench, name, cluster))
    generator = Generator(bench.programs.generator, bench.pinning.load, cluster.watch)
    stack.enter_context(generator).open(case.loop_opening(loop.address, frame_bytes))
    return _Target(name, generator, [loop.server], frame_bytes)


def _new_loop(case: Case, bench: Bench, name: str, cluster: Cluster) -> Loop:
    return Loop(
        bench.programs.loop,
        bench.pinning.servers,
        cluster.watch,
        batched=name == BATCHED,
        echo=case.has_echo and case.members_publish,
    )


# -- without -----------------------------------------------------------------------------------------------


def _measure_idle(into: Measured, bench: Bench) -> None:
    case, options = into.case, bench.options
    for number in range(options.repeat):
        with ExitStack() as stack:
            bench.step(f"round {number + 1} of {options.repeat}, starting the cluster")
            cluster = stack.enter_context(bench.starting(case.shards))
            generator = Generator(bench.programs.generator, bench.pinning.load, cluster.watch)
            stack.enter_context(generator)
            bench.step(f"round {number + 1} of {options.repeat}, connecting")
            # A server that had these clients before has their memory still.
            is_fresh = bench.is_ours or number == 0
            opening = case.opening(cluster)
            round = {SERVER: _connected(generator, opening, cluster.servers, is_fresh)}
            generator.close()
            if bench.programs.loop and bench.is_here:
                loop = stack.enter_context(_new_loop(case, bench, ONE_BY_ONE, cluster))
                opening = case.loop_opening(loop.address, 0)
                round[ONE_BY_ONE] = _connected(generator, opening, [loop.server], True)
            into.runs.append(round)


def _connected(generator: Generator, opening: Opening, servers: Sequence[Server], has_memory: bool) -> Sample:
    shards = [server for server in servers if not server.is_redis]
    generator.open(replace(opening, members=min(_FIRST_CLIENTS, opening.members)))
    generator.close()
    before = _settled_bytes(shards)
    used = [usage_of(server.pid) for server in servers]
    opened, _ = generator.open(opening)
    used_then = [usage_of(server.pid) for server in servers]
    growth = _settled_bytes(shards) - before if has_memory and shards else None
    return idle_sample(opened, used, used_then, growth, servers)


def _settled_bytes(servers: Sequence[Server]) -> int:
    """Memory of some processes, once it no longer changes."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    now = -1
    while True:
        before, now = now, sum(resident_bytes(server.pid) for server in servers)
        if now == before or time.monotonic() > deadline:
            return now
        time.sleep(_SETTLED_SECONDS)
