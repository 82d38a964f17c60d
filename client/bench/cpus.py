"""Which CPUs the servers and the load generator run on.

Apart, so that a delivery costs the same in each run, and "per core of server" means something. Redis runs
beside the generator: with two CPUs, the shards have one to themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from spread.client.bench.errors import BadRequest

__all__ = ["Pinning", "parse_cpus", "pinned_to", "pinning"]

Cpus = frozenset[int]


@dataclass(frozen=True, slots=True)
class Pinning:
    """Empty: anywhere."""

    servers: Cpus
    load: Cpus

    def __str__(self) -> str:
        if not self.servers and not self.load:
            return "not pinned"
        return f"shards on CPU {_shown(self.servers)}, generator and Redis on CPU {_shown(self.load)}"


def _shown(cpus: Cpus) -> str:
    return ",".join(map(str, sorted(cpus))) or "any"


def pinning(allowed: set[int], servers: Cpus | None, load: Cpus | None) -> Pinning:
    """The generator on the last CPU and the servers on the others, where nothing else is said.

    :raises BadRequest: a CPU is asked for that this process may not use.
    """
    for cpus in (servers or (), load or ()):
        if foreign := set(cpus) - allowed:
            raise BadRequest(
                f"CPU {_shown(frozenset(foreign))} is not among those this process may use: "
                f"{_shown(frozenset(allowed))}"
            )
    if servers is None and load is None and len(allowed) < 2:
        return Pinning(frozenset(), frozenset())
    if load is None:
        load = frozenset({max(allowed - (servers or set()), default=max(allowed))})
    if servers is None:
        servers = frozenset(allowed - load) or frozenset(allowed)
    return Pinning(servers, load)


def parse_cpus(text: str) -> Cpus:
    """``0-2,5``.

    :raises ValueError: it is no list of CPUs.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        begin = int(first)
        end = int(last) if dash else begin
        if not 0 <= begin <= end < 4096:
            raise ValueError(text)
        cpus.update(range(begin, end + 1))
    return frozenset(cpus)


@contextmanager
def pinned_to(cpus: Cpus) -> Iterator[None]:
    """What is started meanwhile runs on these CPUs, with all its threads, from its beginning."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
