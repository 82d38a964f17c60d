"""Tables of shards that run: followed, announced, and what clients may do with ``$tables``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from spread.hub.errors import HubUnavailable
from spread.node.live_tables import ANNOUNCE_SECONDS, LOOK_SECONDS, RETRY_SECONDS, LiveTables
from spread.node.namespaces import Namespaces
from spread.node.settings import ChannelSettings, NamespaceOptions
from spread.node.tables import Tables, TablesBroken
from tests.node.people import City, FakeShard
from tests.node.tables import ITEMS, put, table

MORE = table("items", "id", {"id": "str", "damage": "int"}, ["axe", 7])


def live(shard: FakeShard, directory: Path) -> LiveTables:
    """The tables of a shard, which is told of them."""
    found = LiveTables(
        shard.city.clock,
        Tables(directory),
        str(directory),
        hub=shard.hub,
        history=None,
        counters=shard.counters,
        in_thread=maybeDeferred,
    )
    found.start()
    shard.shared = shard.clients.shared = replace(shard.shared, tables=lambda: found.announcement)
    return found


@pytest.fixture
def logged() -> Iterator[list[str]]:
    found: list[str] = []

    def note(event: LogEvent) -> None:
        is_ours = event["log_namespace"].startswith("spread.node.live_tables")
        if is_ours and event["log_level"].name != "info":
            found.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(note)
    yield found
    globalLogPublisher.removeObserver(note)


def etags(tables: LiveTables) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tables.announcement)
    return found


# -- following -------------------------------------------------------------------------------------------


def test_new_tables_are_taken_when_they_are_left_alone(tmp_path: Path) -> None:
    city = City()
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    before = tables.tables
    put(tmp_path, MORE)
    city.turn(LOOK_SECONDS)
    assert tables.tables is before, "it may be in the middle of it"
    city.turn(LOOK_SECONDS)
    assert tables.tables.items["axe"].damage == 7
    assert before.items["sword"].damage == 5, "who holds on to it reads what it read before"
    counters = city.shards[0].counters
    assert (counters.tables_reloads, counters.tables_refused) == (1, 0)
    assert counters.tables_bytes == (tmp_path / "items.json").stat().st_size
    tables.stop()


def test_broken_tables_leave_the_old_ones_and_are_told_once(tmp_path: Path, logged: list[str]) -> None:
    city = City()
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    before = tables.tables
    put(tmp_path, MORE, manifest={"items": "0"})
    city.turn(5 * LOOK_SECONDS)
    assert tables.tables is before
    assert len(logged) == 1 and "items.json is not the one" in logged[0]
    assert city.shards[0].counters.tables_refused == 1
    put(tmp_path, MORE)
    city.turn(3 * LOOK_SECONDS)
    assert "axe" in tables.tables.items
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    city.turn(5 * LOOK_SECONDS)
    assert "axe" in tables.tables.items
    assert len(logged) == 2 and "No such file" in logged[1]
    tables.stop()


def test_an_unforeseen_error_does_not_end_the_looking(tmp_path: Path, logged: list[str]) -> None:
    city = City()
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    tables._in_thread = lambda read: fail(MemoryError())
    city.turn(LOOK_SECONDS)
    assert logged == ["looking at the tables"]
    tables._in_thread = maybeDeferred
    put(tmp_path, MORE)
    city.turn(3 * LOOK_SECONDS)
    assert "axe" in tables.tables.items
    tables.stop()


def test_a_reload_is_done_at_once_and_tells_what_is_wrong(tmp_path: Path) -> None:
    city = City()
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    results: list[Any] = []
    tables.reload().addCallback(results.append)
    put(tmp_path, MORE)
    tables.reload().addCallback(results.append)
    assert results == [False, True]
    put(tmp_path, ITEMS, manifest={"items": "0"})
    failures: list[Failure] = []
    tables.reload().addErrback(failures.append)
    assert failures[0].check(TablesBroken)
    assert "axe" in tables.tables.items
    tables.stop()
    put(tmp_path, ITEMS)
    tables.reload().addCallback(results.append)
    assert results[-1] is False and "axe" in tables.tables.items, "stopped"
    tables.stop()
    assert not city.clock.getDelayedCalls() or all(
        "LiveTables" not in repr(call.func) for call in city.clock.getDelayedCalls()
    )


def test_reloads_come_one_after_the_other(tmp_path: Path) -> None:
    city = City()
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    held: list[tuple[Any, Deferred[Any]]] = []

    def hold(read: Any) -> Deferred[Any]:
        held.append((read, Deferred()))
        return held[-1][1]

    tables._in_thread = hold
    results: list[bool] = []
    for _ in range(2):
        tables.reload().addCallback(results.append)
    assert len(held) == 1
    put(tmp_path, MORE)
    for read, reading in held:  # grows meanwhile
        reading.callback(read())
    assert results == [True, False]
    tables.stop()


# -- announcing ------------------------------------------------------------------------------------------


def test_who_subscribes_is_told_what_there_is_and_then_what_is_new(tmp_path: Path) -> None:
    city = City(shards=2)
    shards = [live(shard, put(tmp_path, ITEMS)) for shard in city.shards]
    people = [city.guest(shard) for shard in range(2)]
    for person in people:
        assert person.subscribes("$tables")["data"] == etags(shards[0])
    put(tmp_path, MORE)
    city.turn(2 * LOOK_SECONDS)
    assert not any(person.heard for person in people), "not before all shards have it"
    city.turn(ANNOUNCE_SECONDS)
    news = etags(shards[0])
    assert [person.heard for person in people] == [[news], [news]], "once, though two shards saw it"
    assert city.guest().subscribes("$tables")["data"] == news
    for tables in shards:
        tables.stop()


def test_tables_that_come_again_are_announced_again(tmp_path: Path) -> None:
    city = City(shards=2)
    shards = [live(shard, put(tmp_path, ITEMS)) for shard in city.shards]
    person = city.guest()
    person.subscribes("$tables")
    wanted = []
    for each in (MORE, ITEMS, MORE, ITEMS):
        put(tmp_path, each)
        city.turn(2 * LOOK_SECONDS + ANNOUNCE_SECONDS)
        wanted.append(etags(shards[0]))
    assert person.heard == wanted
    for tables in shards:
        tables.stop()


def test_an_announcement_that_the_hub_did_not_take_is_made_later(tmp_path: Path, logged: list[str]) -> None:
    city = City()
    shard = city.shards[0]
    tables = live(shard, put(tmp_path, ITEMS))
    person = city.guest()
    person.subscribes("$tables")
    real = shard.hub.publish

    def publish(*_: Any) -> Deferred[Any]:
        return fail(HubUnavailable("publish", "away"))

    shard.hub.publish = publish  # type: ignore[method-assign]
    put(tmp_path, MORE)
    city.turn(2 * LOOK_SECONDS + ANNOUNCE_SECONDS)
    assert len(logged) == 1 and "were not announced" in logged[0]
    shard.hub.publish = real  # type: ignore[method-assign]
    city.turn(RETRY_SECONDS)
    assert person.heard == [etags(tables)]
    tables.stop()


# -- who may what ----------------------------------------------------------------------------------------


def test_the_channel_is_everybodys_to_read_and_nobodys_to_write(tmp_path: Path) -> None:
    closed = ChannelSettings(without_namespace=NamespaceOptions(channel_regex="^[a-z]+$", presence=True))
    city = City(closed, insecure=True)
    tables = live(city.shards[0], put(tmp_path, ITEMS))
    person = city.guest()
    assert person.subscribes("$tables")["data"]
    assert person.asks(publish={"channel": "$tables", "data": {}})["error"]["code"] == 103
    assert person.asks(presence={"channel": "$tables"})["presence"]["presence"] == {}, "it would be everybody"
    tables.stop()


def test_without_tables_it_is_a_private_channel_like_others() -> None:
    city = City()
    assert city.guest().asks(subscribe={"channel": "$tables"})["error"]["code"] == 103


def test_it_is_not_for_text_clients() -> None:
    from spread.node.session.text import Surroundings

    parts: dict[str, Any] = dict.fromkeys(
        ("clock", "hub", "channels", "pressure", "counters", "settings", "hub_settings", "namespaces")
    )
    parts["namespaces"] = Namespaces(ChannelSettings(private_prefix=""))
    surroundings = Surroundings(*parts.values())
    assert surroundings.is_open("$other") and not surroundings.is_open("$tables")
