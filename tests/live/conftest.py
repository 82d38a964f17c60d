"""What the live tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.cluster import Cluster, pair, running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Whatever a test starts ends with it, the last first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def shards() -> Iterator[Cluster]:
    """Three shards that many tests share."""
    with ExitStack() as stack:
        yield running(stack)


@pytest.fixture
def cluster(shards: Cluster) -> Iterator[Cluster]:
    """The same; a test must leave them alive."""
    yield shards
    shards.check_alive()


@pytest.fixture
def frail(stack: ExitStack) -> Cluster:
    """Two shards and a Valkey that a test has for itself, to break them."""
    return pair(stack)
