"""Two shards for all tests of SDKs, and clients of any SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sdk.drivers import VARIANTS, Client, Driver, Variant, js_driver, python_driver
from tests.sdk.shards import Shards, running

Open = Callable[..., Client]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Shards]:
    with ExitStack() as stack:
        yield running(stack)


@pytest.fixture
def shards(cluster: Shards) -> Iterator[Shards]:
    """Both shards; a test must leave them alive."""
    yield cluster
    cluster.check_alive()


@pytest.fixture(scope="session")
def driver_of() -> Iterator[Callable[[str], Driver]]:
    """The driver of an SDK by its name, started when first asked for."""
    started: dict[str, Driver] = {}

    def driver(sdk: str) -> Driver:
        if sdk not in started:
            started[sdk] = python_driver() if sdk == "python" else js_driver()
        return started[sdk]

    yield driver
    for each in started.values():
        each.close()


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each way to connect."""
    found: Variant = request.param
    return found


@pytest.fixture
def open_client(shards: Shards, driver_of: Callable[[str], Driver]) -> Iterator[Open]:
    """Clients, of any variant on any shard, that are gone after the test.

    ``open_client(variant, shard, user=…, wait=True, claims={…}, **options)``: ``options`` are those of the
    command ``open``. Without ``token`` and ``tokens`` it has a token of its user that never expires. What
    emulated clients send goes to the other shard.
    """
    opened: list[Client] = []

    def open_one(
        variant: Variant,
        shard: int,
        user: str = "",
        wait: bool = True,
        claims: dict[str, Any] | None = None,
        **options: Any,
    ) -> Client:
        user = user or shards.fresh("user")
        client = Client(driver_of(variant.sdk), shards.fresh("client"), user, shard)
        if "token" not in options and "tokens" not in options:
            options["token"] = shards.token(user, **(claims or {}))
        client.call(
            "open",
            url=shards.url(shard),
            emulation=shards.url(1 - shard),
            transport=variant.transport,
            protobuf=variant.is_protobuf,
            **options,
        )
        opened.append(client)
        if wait:
            client.connected()
        return client

    yield open_one
    for number, client in [(client.begin("close"), client) for client in opened]:
        client.result(number)
