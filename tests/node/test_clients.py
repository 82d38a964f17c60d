"""The registry of clients, and what the server API does to them through it, across shards."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from spread.hub.api import Format, Position, PublishOptions
from spread.hub.errors import ShardUnknown
from spread.node import clients as clients_module
from spread.node import codes
from spread.node.control import Override, SubscribeOptions
from spread.node.limits import Admission
from spread.node.settings import NamespaceOptions
from tests.node.people import NOW, City, namespaces, token

KEPT = NamespaceOptions(history_size=5, history_ttl=300.0, allow_recovery=True, presence=True)


def result_of(city: City, asked: Deferred[Any]) -> Any:
    """What a question comes to."""
    got: list[Any] = []
    asked.addBoth(got.append)
    city.turn()
    assert len(got) == 1
    return got[0]


def test_disconnect_reaches_the_user_wherever_it_is() -> None:
    city = City(shards=2)
    anns = [city.guest(shard, token=token(sub="ann")) for shard in (0, 1, 1)]
    bob, nobody = city.guest(1, token=token(sub="bob")), city.guest(0)
    control = city.shards[0].control
    asked = control.ask_disconnect(
        "ann", whitelist=[anns[0].client], disconnect=codes.Disconnect(4000, "out")
    )
    assert result_of(city, asked) == 2
    assert [ann.closed for ann in anns] == [None, (4000, "out"), (4000, "out")]
    asked = control.ask_disconnect("ann", client="another", disconnect=codes.FORCE_DISCONNECT)
    assert result_of(city, asked) == 0
    assert result_of(city, control.ask_disconnect("", disconnect=codes.FORCE_DISCONNECT)) == 1
    assert nobody.closed == (3503, "force disconnect")
    assert bob.closed is None and anns[0].closed is None


def test_unsubscribe() -> None:
    city = City(shards=2)
    ann = city.guest(1, token=token(sub="ann"))
    for channel in ("a", "b", "c"):
        ann.subscribes(channel)
    ann.told.clear()
    control = city.shards[0].control
    assert result_of(city, control.ask_unsubscribe("ann", "a")) == 1
    told = {"unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
    assert ann.pushes == [{"channel": "a", **told}]
    assert result_of(city, control.ask_unsubscribe("ann", "a")) == 0
    assert result_of(city, control.ask_unsubscribe("ann", "")) == 1
    assert [push["channel"] for push in ann.pushes] == ["b", "c"]
    assert ann.session.subscriptions == {}


def test_subscribe() -> None:
    city = City(namespaces(KEPT), shards=2, ping_interval=-1.0)
    ann = city.guest(1, token=token(sub="ann"))
    hub = city.shards[0].hub
    options = city.namespaces.options("a")
    assert options is not None
    for number in range(3):
        hub.publish("a", b"%d" % number, Format.JSON, 0, PublishOptions(history=options.history))
    epoch = result_of(city, hub.history("a", options.history)).position.epoch  # type: ignore[arg-type]
    control = city.shards[0].control
    asked = control.ask_subscribe(
        "ann",
        "a",
        options=SubscribeOptions(
            info=b'{"x":1}',
            data=b'"hello"',
            recover_since=Position(epoch, 1),
            override=Override(force_recovery=True, force_push_join_leave=True, join_leave=True),
            expire_at=int(NOW) + 10,
        ),
    )
    assert result_of(city, asked) == 1
    pushes = ann.pushes
    assert pushes[0] == {
        "channel": "a",
        "subscribe": {
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "offset": 1,
            "data": "hello",
        },
    }
    assert [push["pub"]["offset"] for push in pushes[1:3]] == [2, 3]
    assert pushes[3]["join"]["info"]["chan_info"] == {"x": 1}
    assert result_of(city, control.ask_subscribe("ann", "a")) == 0, "it is already"
    assert result_of(city, control.ask_subscribe("nobody", "a")) == 0
    city.turn(40)
    assert ann.closed == (3006, "subscription expired")


def test_subscribe_stops_at_the_limit_and_at_unknown_namespaces() -> None:
    city = City(channel_limit=1)
    ann = city.guest(token=token(sub="ann"))
    control = city.shards[0].control
    assert result_of(city, control.ask_subscribe("ann", "nowhere:a")) == 0
    assert result_of(city, control.ask_subscribe("ann", "a")) == 1
    assert result_of(city, control.ask_subscribe("ann", "b")) == 0
    assert set(ann.session.subscriptions) == {"a"}


def test_refresh() -> None:
    city = City(shards=2, ping_interval=-1.0)
    ann = city.guest(1, token=token(sub="ann", exp=int(NOW) + 10))
    control = city.shards[0].control
    assert result_of(city, control.ask_refresh("ann", expire_at=int(NOW) + 500, info=b'"i"')) == 1
    assert ann.told == [{"push": {"refresh": {"expires": True, "ttl": 500}}}]
    assert ann.session.conn_info == b'"i"'
    city.turn(100)
    assert result_of(city, control.ask_refresh("ann")) == 1
    assert ann.told == [{"push": {"refresh": {}}}]
    city.turn(1000)
    assert ann.closed is None
    assert result_of(city, control.ask_refresh("ann", expired=True)) == 1
    assert ann.closed == (3005, "connection expired")
    bob = city.guest(0, token=token(sub="bob"))
    assert result_of(city, control.ask_refresh("bob", expire_at=int(NOW))) == 1
    assert bob.closed == (3005, "connection expired")


def test_channels_across_shards() -> None:
    city = City(shards=2)
    for shard, channels in enumerate((("chat:1", "game"), ("chat:1", "chat:2"))):
        for channel in channels:
            if ":" in channel:
                continue
            city.guest(shard).subscribes(channel)
    city.guest(0).subscribes("game")
    city.guest(1).subscribes("game")
    control = city.shards[1].control
    assert result_of(city, control.ask_channels()) == {"game": 3}
    assert result_of(city, control.ask_channels("g*")) == {"game": 3}
    assert result_of(city, control.ask_channels("x*")) == {}


def test_emulation_goes_to_the_shard_that_has_the_session() -> None:
    city = City(shards=2)
    ann = city.person(0, is_emulated=True)
    ann.says({"id": 1, "connect": {}})
    greeting = ann.told[0]["connect"]
    control = city.shards[1].control
    frame = b'{"id":2,"unsubscribe":{"channel":"a"}}'
    assert result_of(city, control.emulate(greeting["node"], greeting["session"], frame)) is True
    assert ann.told == [{"id": 2, "unsubscribe": {}}]
    ann.leaves()
    assert result_of(city, control.emulate(greeting["node"], greeting["session"], frame)) is False
    failure = result_of(city, control.emulate("00000000000000ff", greeting["session"], frame))
    failure.trap(ShardUnknown)


# --- who may come -------------------------------------------------------------------------------------


def test_limits_on_connections() -> None:
    city = City(connection_limit=2)
    ann, _ = city.guest(), city.guest()
    registry = city.shards[0].clients
    assert "client.connection_limit" in registry.admit("10.0.0.1")
    ann.leaves()
    assert registry.admit("10.0.0.1") == ""
    registry.release("10.0.0.1")
    assert city.shards[0].counters.refused_full == 1


def test_a_limit_on_new_connections() -> None:
    city = City(connection_rate_limit=2)
    registry = city.shards[0].clients
    assert [bool(registry.admit("10.0.0.1")) for _ in range(3)] == [False, False, True]
    city.turn(1)
    assert registry.admit("10.0.0.1") == ""
    assert city.shards[0].counters.refused_rate == 1


@pytest.mark.parametrize(("admission", "words"), [(Admission(1, 0), "full"), (Admission(0, 1), "address")])
def test_the_limits_of_the_shard_hold(admission: Admission, words: str) -> None:
    city = City()
    registry = city.shards[0].clients
    registry._admission = admission
    assert registry.admit("10.0.0.1") == ""
    assert words in registry.admit("10.0.0.1")


def test_rates_of_users_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "MAX_USER_RATES", 3)
    city = City(user_commands_per_second=1.0)
    ann = city.guest(token=token(sub="ann"))
    ann.asks(unsubscribe={"channel": "a"})
    registry = city.shards[0].clients
    for number in range(20):
        registry.rate_of(f"user {number}")
        assert len(registry._user_rates) <= 3
    assert ann.asks(unsubscribe={"channel": "a"})["error"]["code"] == 111, "who is here keeps its rate"
    assert registry.rate_of("") is None


def test_lines_about_clients_are_not_a_flood() -> None:
    city = City(allow_anonymous_connect_without_token=False)
    registry = city.shards[0].clients
    lines: list[str] = []
    registry.log = FakeLog(lines)  # type: ignore[assignment]
    for _ in range(100):
        person = city.person()
        person.says({"id": 1, "connect": {}})
    assert len(lines) == 20
    assert "client.allow_anonymous_connect_without_token" in lines[0]
    city.turn(1)
    city.person().says({"id": 1, "connect": {"token": "x"}})
    assert "80 more" in lines[-1]


def test_what_is_refused_is_logged_with_what_would_allow_it() -> None:
    city = City(
        namespaces(
            NamespaceOptions(),
            room={"allow_subscribe_for_client": True, "channel_regex": "^[0-9]+$"},
            pair={"allow_user_limited_channels": True},
        )
    )
    lines: list[str] = []
    city.shards[0].clients.log = FakeLog(lines)  # type: ignore[assignment]
    ann = city.guest()
    for request, words in (
        (
            {"subscribe": {"channel": "news"}},
            "103 permission denied (no subscription token, and allow_subscribe_for_client is off for 'news')",
        ),
        ({"subscribe": {"channel": "room:1"}}, "allow_subscribe_for_anonymous is off for 'room:1'"),
        ({"subscribe": {"channel": "$room:1"}}, "'$room:1' is private, and no token was given"),
        ({"subscribe": {"channel": "a#17"}}, "allow_user_limited_channels is off for 'a#17'"),
        ({"subscribe": {"channel": "pair:a#17"}}, "'pair:a#17' is for other users"),
        ({"subscribe": {"channel": "room:x"}}, "107 bad request ('room:x': it does not match channel_regex"),
        (
            {"subscribe": {"channel": "nope:1"}},
            "102 unknown channel (the namespace of 'nope:1' is not in channel.name",
        ),
        (
            {"publish": {"channel": "news", "data": 1}},
            "allow_publish_for_client and its like do not let this user",
        ),
        ({"publish": {"channel": "nope:1", "data": 1}}, "102 unknown channel (the namespace of 'nope:1'"),
    ):
        assert "error" in ann.asks(**request)
        assert words in lines.pop(), request
        assert not lines


class FakeLog:
    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def info(self, text: str, **values: Any) -> None:
        self.lines.append(text.format(**{name: value for name, value in values.items()}))
