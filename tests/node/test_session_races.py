"""What comes between the steps of subscribing, leaving and fanning out: nothing is lost, doubled or left."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from spread.hub.api import Broken, Format, Position, Publication, PublishOptions
from spread.node import channel as channel_module
from spread.node import codes
from spread.node.control import SubscribeOptions
from tests.node.people import OPEN, City, namespaces, token

FOLLOWED = structs.replace(OPEN, force_recovery=True)


def publish(city: City, channel: str, *data: int, shard: int = 0) -> None:
    options = city.namespaces.options(channel)
    assert options is not None
    for one in data:
        city.shards[shard].hub.publish(
            channel, b"%d" % one, Format.JSON, 0, PublishOptions(history=options.history)
        )


def result_of(asked: Deferred[Any]) -> Any:
    results: list[Any] = []
    asked.addBoth(results.append)
    assert results, "it has not fired"
    return results[0]


def failure_of(asked: Deferred[Any]) -> BaseException | None:
    failure = result_of(asked)
    assert isinstance(failure, Failure)
    return failure.value


# --- a channel that is dropped and made again while events of it wait to be fanned out ----------------


def test_a_break_of_the_channel_before_is_no_matter() -> None:
    city = City(namespaces(FOLLOWED))
    ann = city.guest()
    first = ann.subscribes("a")
    publish(city, "a", 1, 2, 3)
    city.turn()
    assert ann.heard == [1, 2, 3]
    ann.asks(unsubscribe={"channel": "a"})
    # These two wait to be fanned out when she comes back: she is behind them.
    fanout = city.shards[0].fanout
    fanout.received("a", Broken(Position(first["epoch"], 1)))
    assert ann.subscribes("a")["offset"] == 3
    fanout.read_done()
    city.turn()
    assert ann.pushes == []
    publish(city, "a", 4)
    city.turn()
    assert ann.heard == [4]


def test_publications_of_an_epoch_before_are_no_matter() -> None:
    city = City(namespaces(FOLLOWED))
    ann = city.guest()
    ann.subscribes("a")
    publish(city, "a", 1)
    city.turn()
    assert ann.heard == [1]
    shard = city.shards[0]
    channel = shard.channels.get("a")
    assert channel is not None and channel.position is not None
    ann.asks(unsubscribe={"channel": "a"})
    old = Publication(b"9", int(Format.JSON), bytes(8), 0, offset=50, epoch="of-before")
    shard.fanout.received("a", old)
    result = ann.subscribes("a")
    shard.fanout.read_done()
    city.turn()
    assert ann.heard == []
    publish(city, "a", 2)
    city.turn()
    assert [push["pub"]["offset"] for push in ann.pushes] == [result["offset"] + 1]


# --- a large channel, served in pieces ----------------------------------------------------------------


def test_who_leaves_and_comes_back_between_two_pieces_gets_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_module, "MEMBERS_PER_STEP", 2)
    city = City(namespaces(FOLLOWED), shards=2)
    people = [city.guest() for _ in range(7)]
    for one in people:
        one.subscribes("a")
    city.turn()
    for one in people:
        one.told.clear()
    last = people[-1]
    channel = city.shards[0].channels.get("a")
    assert channel is not None and channel.position is not None
    position = channel.position
    pieces = channel.fan_out(
        Publication(b"1", int(Format.JSON), bytes(8), 0, offset=position.offset + 1, epoch=position.epoch), 0
    )
    assert pieces is not None
    next(pieces)
    last.says({"id": 5, "unsubscribe": {"channel": "a"}}, {"id": 6, "subscribe": {"channel": "a"}})
    list(pieces)
    told = last.told
    assert told[-1]["subscribe"]["offset"] == position.offset + 1, "it is behind this publication"
    assert not [reply for reply in told if "pub" in reply.get("push", {})]
    assert all(one.heard == [1] for one in people[:-1])


# --- the server API and the client want the same ------------------------------------------------------


def nothing_is_left(city: City) -> None:
    """Nothing is left of clients that have gone."""
    city.turn(5)
    for shard in city.shards:
        assert len(shard.channels) == 0
        assert shard.counters.subscriptions == shard.counters.clients == shard.clients.users == 0
        assert not shard.clients.sessions


def test_a_subscription_of_the_client_comes_before_one_of_the_api() -> None:
    city = City()
    ann = city.guest(token=token(sub="ann"))
    shard = city.shards[0]
    city.exchange.cut()
    ann.says({"id": 2, "subscribe": {"channel": "a"}})
    asked = shard.clients.subscribe("ann", "a", client="", session="", options=SubscribeOptions())
    city.exchange.restore()
    city.turn()
    assert result_of(asked) == 0
    assert [reply["subscribe"] for reply in ann.told if reply.get("id") == 2] == [{}]
    assert set(ann.asks(presence={"channel": "a"})["presence"]["presence"]) == {ann.client}
    assert shard.counters.subscriptions == 1
    ann.leaves()
    nothing_is_left(city)


def test_a_subscription_of_the_api_comes_before_one_of_the_client() -> None:
    city = City()
    ann = city.guest(token=token(sub="ann"))
    shard = city.shards[0]
    city.exchange.cut()
    asked = [
        shard.clients.subscribe("ann", "a", client="", session="", options=SubscribeOptions())
        for _ in range(2)
    ]
    ann.says({"id": 2, "subscribe": {"channel": "a"}})
    city.exchange.restore()
    city.turn()
    assert [result_of(one) for one in asked] == [1, 0]
    told = ann.told
    assert [reply["error"]["code"] for reply in told if reply.get("id") == 2] == [105]
    assert ["subscribe" in reply["push"] for reply in told if "push" in reply][0]
    assert set(ann.asks(presence={"channel": "a"})["presence"]["presence"]) == {ann.client}
    assert shard.counters.subscriptions == 1
    ann.leaves()
    nothing_is_left(city)


def test_subscriptions_of_the_api_keep_to_the_limit_and_to_a_deadline() -> None:
    city = City(channel_limit=2)
    ann = city.guest(token=token(sub="ann"))
    shard = city.shards[0]
    city.exchange.cut()
    asked = [
        shard.clients.subscribe("ann", name, client="", session="", options=SubscribeOptions())
        for name in ("a", "b", "c")
    ]
    assert result_of(asked[2]) == 0
    city.turn(6)
    for one in asked[:2]:
        assert isinstance(failure_of(one), TimeoutError)
    assert len(shard.channels) == 0 and not ann.session.subscribing
    city.exchange.restore()
    ann.leaves()
    nothing_is_left(city)


# --- connecting -----------------------------------------------------------------------------------------


def test_who_was_told_to_go_does_not_stand_in_the_way_of_its_successor() -> None:
    city = City(user_connection_limit=1)
    ann = city.guest(token=token(sub="ann"))
    ann.session.end(codes.INSUFFICIENT_STATE)  # its connection is there for some seconds more
    again = city.guest(token=token(sub="ann"))
    assert again.closed is None
    third = city.person()
    third.says({"id": 1, "connect": {"token": token(sub="ann")}})
    assert third.closed == (3504, "connection limit")
    for one in (ann, again, third):
        one.leaves()
    nothing_is_left(city)


def test_who_is_just_connecting_is_disconnected_too() -> None:
    city = City()
    shard = city.shards[0]
    ann, bob = city.person(), city.person()
    city.exchange.cut()
    ann.says({"id": 1, "connect": {"token": token(sub="ann", channels=["a"])}})
    bob.says({"id": 1, "connect": {"token": token(sub="bob", channels=["a"])}})
    assert shard.clients.disconnect(
        "ann", client="", session="", whitelist=[], disconnect=codes.FORCE_DISCONNECT
    )
    assert ann.closed == (3503, "force disconnect")
    city.exchange.restore()
    city.turn()
    assert bob.closed is None and "connect" in bob.told[0]
    ann.leaves()
    bob.leaves()
    nothing_is_left(city)
