"""What comes between the steps of subscribing, leaving and fanning out: nothing is lost, doubled or left."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from msgspec import structs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.python.failure import Failure

from spread.hub.api import Broken, Format, Position, Publication, PublishOptions
from spread.node import channel as channel_module
from spread.node import codes
from spread.node.control import SubscribeOptions
from spread.node.session import subscribing
from spread.node.session.intake import MAX_UNREAD_BYTES
from spread.node.settings import PersonalChannel
from tests.node.people import OPEN, City, Person, namespaces, token

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
    assert next("subscribe" in reply["push"] for reply in told if "push" in reply)
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


# --- emulated clients, whose frames come whether they are wanted or not ---------------------------------


def emulated(city: City) -> Person:
    ann = city.person(is_emulated=True)
    ann.says({"id": 1, "connect": {}})
    city.turn()
    ann.told.clear()
    return ann


def test_an_emulated_client_that_should_not_be_read_waits_in_order() -> None:
    city = City(max_unacknowledged_commands=4)
    ann = emulated(city)
    shard = city.shards[0]
    ann.subscribes("a")
    city.turn()
    ann.told.clear()
    city.exchange.cut()
    for number in range(40):
        publication = {"channel": "a", "data": number}
        shard.clients.emulate(
            ann.session.secret, json.dumps({"id": 100 + number, "publish": publication}).encode()
        )
    assert shard.hub.counters.journal_publications == 4, "the rest has not been read"
    city.exchange.restore()
    city.turn()
    told = ann.told
    assert [reply["push"]["pub"]["data"] for reply in told if "push" in reply] == list(range(40))
    assert sorted(reply["id"] for reply in told if "id" in reply) == list(range(100, 140))


def test_what_an_emulated_client_may_leave_waiting_has_a_limit() -> None:
    city = City(max_unacknowledged_commands=4)
    ann = emulated(city)
    shard = city.shards[0]
    city.exchange.cut()
    frame = json.dumps({"id": 5, "publish": {"channel": "a", "data": "x" * 1000}}).encode()
    sent = 0
    while ann.closed is None and sent < 1000:
        shard.clients.emulate(ann.session.secret, frame)
        sent += 1
    assert ann.closed == (3013, "too many requests")
    assert sent * len(frame) < 4 * len(frame) + 2 * MAX_UNREAD_BYTES
    ann.leaves()
    city.exchange.restore()
    nothing_is_left(city)


def test_a_pong_behind_what_is_not_read_is_waited_for() -> None:
    city = City(max_unacknowledged_commands=2, ping_interval=10.0, pong_timeout=2.0)
    ann = emulated(city)
    shard = city.shards[0]
    city.turn(8)
    city.exchange.cut()
    city.turn(1)
    for number in range(3):
        ann.says({"id": 5 + number, "publish": {"channel": "a", "data": 1}})
    assert not ann.is_reading
    city.turn(1)
    shard.clients.emulate(ann.session.secret, b"{}")
    city.turn(2)
    assert ann.closed is None
    city.exchange.restore()
    city.turn(2)
    assert ann.closed is None
    city.turn(20)
    assert ann.closed == (3012, "no pong")


# --- words of the protocol ------------------------------------------------------------------------------


def test_a_cache_that_is_empty_is_no_hole_for_who_comes_for_the_first_time() -> None:
    city = City(namespaces(structs.replace(FOLLOWED, force_recovery_mode="cache", auto_cache_recovery=True)))
    ann, bob = city.guest(), city.guest()
    assert "was_recovering" not in ann.subscribes("a", flag=2)
    publish(city, "a", 1)
    city.turn()
    result = bob.subscribes("a", flag=2)
    assert result["recovered"] and "was_recovering" not in result
    assert [one["data"] for one in result["publications"]] == [1]
    bob.asks(unsubscribe={"channel": "a"})
    assert bob.subscribes("a", recover=True)["was_recovering"]
    city.shards[0].hub.remove_history("a")
    bob.asks(unsubscribe={"channel": "a"})
    reply = bob.asks(subscribe={"channel": "a", "recover": True, "epoch": "x", "offset": 1, "flag": 2})
    assert reply["error"]["code"] == 112


def test_personal_channels_are_not_typed_by_anybody() -> None:
    city = City(subscribe_to_user_personal_channel=PersonalChannel(enabled=True))
    ann = city.guest(token=token(sub="Zoë"))
    assert set(ann.greeting["subs"]) == {"#Zoë"}


def test_names_that_a_client_may_not_have_from_the_start_are_passed_over() -> None:
    city = City()
    ann = city.guest(subs={"a": {}, "x" * 300: {}, "naïve": {}, "$b": {}})
    assert set(ann.greeting["subs"]) == {"a"}
    city = City(insecure=True)
    ann = city.guest(subs={"a": {}, "$b": {}})
    assert set(ann.greeting["subs"]) == {"a"}, "a private channel takes a token, always"


def test_data_that_is_no_json_breaks_no_reply() -> None:
    city = City()
    binary, pretty = b64encode(b"\n\xff").decode(), b64encode(b'{\n "x": 1\n}').decode()
    ann = city.guest(token=token(sub="ann", subs={"a": {"b64data": binary}, "b": {"b64data": pretty}}))
    assert "data" not in ann.greeting["subs"]["a"]
    assert ann.greeting["subs"]["b"]["data"] == {"x": 1}


def test_what_the_api_ends_while_it_is_on_its_way_does_not_begin() -> None:
    city = City()
    ann = city.guest(token=token(sub="ann"))
    shard = city.shards[0]
    for channel in ("a", ""):
        city.exchange.cut()
        ann.says({"id": 2, "subscribe": {"channel": "a"}})
        asked = shard.clients.subscribe("ann", "b", client="", session="", options=SubscribeOptions())
        assert shard.clients.unsubscribe("ann", channel, client="", session="") == 1
        if channel:
            ann.says({"id": 3, "unsubscribe": {"channel": "b"}})
        city.exchange.restore()
        city.turn()
        assert result_of(asked) == 0
        told = ann.told
        assert [reply["error"]["code"] for reply in told if reply.get("id") == 2] == [103]
        assert not [reply for reply in told if "push" in reply]
        assert not ann.session.subscriptions and not ann.session.subscribing
    assert ann.subscribes("a") == {}
    ann.leaves()
    nothing_is_left(city)


# --- shards that are not equally quick ------------------------------------------------------------------


@pytest.mark.parametrize("is_in_time", [True, False])
def test_who_comes_from_a_quicker_shard_is_waited_for(is_in_time: bool) -> None:
    city = City(namespaces(FOLLOWED), shards=2)
    ann, bob = city.guest(0), city.guest(1)
    epoch = ann.subscribes("a")["epoch"]
    bob.subscribes("a")
    slow = city.shards[1]
    slow.hub.pause()
    publish(city, "a", 1, 2, 3)
    city.turn()
    assert ann.heard == [1, 2, 3] and bob.heard == []
    ann.leaves()
    ann = city.guest(1)
    ann.says({"id": 5, "subscribe": {"channel": "a", "recover": True, "epoch": epoch, "offset": 3}})
    city.turn(0.5 if is_in_time else 2)
    assert bool(ann.told) is not is_in_time
    slow.hub.resume()
    city.turn(0.5)
    publish(city, "a", 4)
    city.turn()
    if is_in_time:
        told = ann.told
        (result,) = (reply["subscribe"] for reply in told if "subscribe" in reply)
        assert result["recovered"] and "publications" not in result
        assert [reply["push"]["pub"]["data"] for reply in told if "pub" in reply.get("push", {})] == [4]
    assert bob.heard == [1, 2, 3, 4]
    for one in (ann, bob):
        one.leaves()
    nothing_is_left(city)


def test_nobody_waits_for_a_place_where_nobody_was() -> None:
    city = City(namespaces(FOLLOWED))
    ann = city.guest()
    epoch = ann.subscribes("a")["epoch"]
    ann.asks(unsubscribe={"channel": "a"})
    result = ann.subscribes("a", recover=True, epoch=epoch, offset=1 << 60)
    assert result["was_recovering"] and "recovered" not in result


def test_who_leaves_while_it_is_waited_for_leaves_nothing() -> None:
    city = City(namespaces(FOLLOWED), shards=2)
    ann, bob = city.guest(0), city.guest(1)
    epoch = ann.subscribes("a")["epoch"]
    bob.subscribes("a")
    city.shards[1].hub.pause()
    publish(city, "a", 1)
    city.turn()
    ann.leaves()
    ann = city.guest(1)
    ann.says({"id": 5, "subscribe": {"channel": "a", "recover": True, "epoch": epoch, "offset": 1}})
    city.turn(0.1)
    ann.leaves()
    bob.leaves()
    city.shards[1].hub.resume()
    nothing_is_left(city)


# --- defects of ours ------------------------------------------------------------------------------------


def test_a_defect_ends_the_one_connection_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object) -> Any:
        raise RuntimeError("a defect")

    city = City(namespaces(FOLLOWED))
    ann, bob = city.guest(), city.guest()
    ann.subscribes("b")
    monkeypatch.setattr(subscribing, "recovered_for", defect)
    ann.says({"id": 5, "subscribe": {"channel": "a"}})
    assert ann.closed == (3004, "internal server error")
    monkeypatch.setattr(city.shards[0].hub, "publish", defect)
    bob.says({"id": 5, "publish": {"channel": "a", "data": 1}})
    assert bob.closed == (3004, "internal server error")
    ann.leaves()
    bob.leaves()
    nothing_is_left(city)
