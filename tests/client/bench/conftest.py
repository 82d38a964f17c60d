"""What the tests of the benchmark share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spread.client.bench.cluster import Cluster, started
from spread.client.bench.compiler import CannotCompile
from spread.client.bench.engine import Generator, Programs, programs
from spread.client.bench.processes import Watch

if sys.platform != "linux":  # it measures with epoll and /proc
    collect_ignore_glob = ["test_*.py"]

NOBODY: frozenset[int] = frozenset()
PYTHON = (sys.executable, "-P", "-m", "spread.client.bench.generator")


@pytest.fixture(scope="session")
def c_programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Compiled once for all tests."""
    try:
        found = programs(os.environ, tmp_path_factory.mktemp("compiled"))
    except CannotCompile as error:  # pragma: no cover
        pytest.skip(str(error))
    if found.coarse_because:  # pragma: no cover
        pytest.skip(found.coarse_because)
    return found


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


@pytest.fixture(scope="session", params=["C", "Python"])
def running(request: pytest.FixtureRequest) -> Iterator[Generator]:
    """Both generators, which do the same. They start slowly, and begin anew with each ``open``."""
    command = request.getfixturevalue("c_programs").generator if request.param == "C" else PYTHON
    watch = Watch()
    with Generator(command, NOBODY, watch) as generator:
        yield generator
    watch.close()


@pytest.fixture
def generator(running: Generator) -> Iterator[Generator]:
    """One that nothing is connected to afterwards."""
    yield running
    running.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two real shards that many tests share."""
    with started(2, hub="", redis=(), servers_on=NOBODY, load_on=NOBODY, environ=os.environ) as cluster:
        yield cluster


@pytest.fixture
def private_cache(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing has been compiled."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
