"""From the settings of a hub to a hub; nothing is connected here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from spread.hub.errors import HubMisconfigured
from spread.hub.memory import MemoryHub
from spread.hub.redis import RedisHub
from spread.hub.several import SeveralHub
from spread.node.hubs import check_hub, embedded_server, open_hub
from spread.node.settings import HubSettings

INCARNATION = "00000000000000aa"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"SPREAD_HOME": str(tmp_path)}


def check(url: str, is_fleet: bool = False, environ: dict[str, str] | None = None, **settings: Any) -> str:
    return check_hub(reactor, HubSettings(url=url, **settings), is_fleet, environ or {})


def test_what_can_work() -> None:
    assert check("memory:") == "memory"
    assert check("embedded:", environ={"SPREAD_HOME": "/tmp/x"}) == "embedded"
    assert check("redis://:secret@127.0.0.1:1", is_fleet=True) == "redis://127.0.0.1:1"
    assert check("redis://:secret@a redis://b", is_fleet=True) == "redis://a:6379,redis://b:6379"


@pytest.mark.parametrize(
    ("url", "how", "words"),
    [
        ("memory:", {"is_fleet": True}, "memory: joins no shards"),
        ("memory:", {"tls_ca": "/x"}, "remove hub.tls_"),
        ("embedded:", {"tls_cert": "/x", "tls_key": "/y"}, "remove hub.tls_"),
        ("embedded:", {"environ": {"SPREAD_HOME": "/" + "x" * 200}}, "set SPREAD_HOME to something shorter"),
        ("http://127.0.0.1", {}, "hub"),
        ("rediss://127.0.0.1:1", {"tls_ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ("redis://127.0.0.1:1", {"tls_ca": "/x"}, "write rediss://"),
        ("redis://127.0.0.1:1 rediss://127.0.0.1:2", {"tls_ca": "/x"}, "write rediss://"),
        ("redis://127.0.0.1:1 memory:", {}, "memory: is a hub by itself"),
    ],
)
def test_what_cannot_work(url: str, how: dict[str, Any], words: str) -> None:
    with pytest.raises(HubMisconfigured, match=words):
        check(url, **how)


def test_only_embedded_has_a_server_of_ours(home: dict[str, str]) -> None:
    assert embedded_server(HubSettings(url="memory:"), home) is None
    server = embedded_server(HubSettings(url="embedded:"), home)
    assert server is not None
    assert str(server.home) == home["SPREAD_HOME"]


@pytest.mark.parametrize(
    ("url", "kind"),
    [("memory:", MemoryHub), ("redis://127.0.0.1:1", RedisHub), ("embedded:", RedisHub)],
)
def test_hubs_are_opened_and_not_started(url: str, kind: type, home: dict[str, str]) -> None:
    opened = open_hub(reactor, HubSettings(url=url), INCARNATION, home)
    assert isinstance(opened.hub, kind)
    assert not opened.hub.is_live
    assert opened.hub.name == url.removesuffix(":")


def test_several_servers_are_one_hub_with_one_set_of_counters(home: dict[str, str]) -> None:
    hub = open_hub(reactor, HubSettings(url="redis://a:1 rediss://b:2"), INCARNATION, home).hub
    assert isinstance(hub, SeveralHub)
    assert hub.name == "redis://a:1,rediss://b:2"
    assert all(each.counters is hub.counters for each in hub.hubs)


def test_what_needs_no_preparation(home: dict[str, str]) -> None:
    for url in ("memory:", "redis://127.0.0.1:1"):
        done: list[object] = []
        open_hub(reactor, HubSettings(url=url), INCARNATION, home).prepare().addCallback(done.append)
        assert done == [None]


def test_the_memory_hub_has_the_limits_of_the_settings() -> None:
    settings = HubSettings(url="memory:", journal_max_publications=7, publish_seconds=2, linger_seconds=9)
    hub = open_hub(reactor, settings, INCARNATION, {}).hub
    assert isinstance(hub, MemoryHub)
    assert (hub._exchange.max_waiting, hub._exchange.publish_seconds, hub._linger_seconds) == (7, 2, 9)


def test_the_redis_hub_checks_positions_as_often_as_it_is_told() -> None:
    settings = HubSettings(url="redis://127.0.0.1:1")
    hub = open_hub(reactor, settings, INCARNATION, {}, position_check_seconds=7).hub
    assert isinstance(hub, RedisHub)
    assert hub._settings.position_check_seconds == 7
