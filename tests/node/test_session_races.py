"""What can come between the steps of subscribing, leaving and fanning out: nothing is lost, doubled or left."""

from __future__ import annotations

import pytest
from msgspec import structs

from spread.hub.api import Broken, Format, Position, Publication, PublishOptions
from spread.node import channel as channel_module
from tests.node.people import OPEN, City, namespaces

FOLLOWED = structs.replace(OPEN, force_recovery=True)


def publish(city: City, channel: str, *data: int, shard: int = 0) -> None:
    options = city.namespaces.options(channel)
    assert options is not None
    for one in data:
        city.shards[shard].hub.publish(
            channel, b"%d" % one, Format.JSON, 0, PublishOptions(history=options.history)
        )


# --- a channel that is dropped and made again while events of it wait to be fanned out ---------------------


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


# --- a large channel, served in pieces ------------------------------------------------------------------------


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
