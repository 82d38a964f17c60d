"""The methods of the server API, on two shards that share a hub in memory."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent, globalLogPublisher

from spread.hub.api import ClientInfo, Format, Position, Publication, PublishOptions
from spread.hub.errors import HubRefused
from spread.node import codes
from spread.node.api import ApiError, methods
from spread.node.api.params import Publish, decoded
from spread.node.control import Override, SubscribeOptions
from spread.node.wire.json import embeddable
from tests.node.fake_api import KEPT, Cluster, Shard


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


class Listener:
    """Hears a channel on the second shard."""

    def __init__(self, cluster: Cluster, channel: str) -> None:
        self._cluster, self._channel = cluster, channel
        cluster.outcome(cluster.second.hub.subscribe(channel))

    def now(self) -> list[Publication]:
        self._cluster.clock.advance(0.1)
        return [event for channel, event in self._cluster.second.heard if channel == self._channel]


def code(cluster: Cluster, method: str, arguments: Any = None, **more: Any) -> int:
    """Of the error that a method fails with."""
    with pytest.raises(ApiError) as caught:
        cluster.call(method, arguments, **more)
    assert caught.value.error == codes.ERRORS[caught.value.error.code]
    return caught.value.error.code


# --- publish -------------------------------------------------------------------------------------------


def test_publish_with_history_tells_where(cluster: Cluster) -> None:
    first = cluster.call("publish", {"channel": "room:7", "data": {"t": "hi"}})
    second = cluster.call("publish", {"channel": "room:7", "data": 1}, shard=cluster.second)
    assert first == {"offset": 1, "epoch": first["epoch"]} and first["epoch"]
    assert second == {"offset": 2, "epoch": first["epoch"]}


def test_publish_without_history_tells_nothing(cluster: Cluster) -> None:
    there = Listener(cluster, "news")
    assert cluster.call("publish", {"channel": "news", "data": "x"}) == {}
    [publication] = there.now()
    assert (publication.data, publication.format, publication.offset) == (b'"x"', Format.JSON, 0)
    assert (publication.info, publication.session, publication.tags) == (None, 0, None)


@pytest.mark.parametrize(
    ("written", "published"),
    [
        (b'{ "b":1.0, "a":1e5,"a" :2,"n":12345678901234567890123 }',) * 2,
        (b'{\n  "a": [\n    1,\n    "x\\ny"\n  ]\n}', b'{"a": [1,"x\\ny"]}'),
        (b"null", b"null"),
        (b"false", b"false"),
        (b'""', b'""'),
        ('"привет"'.encode(),) * 2,
        (b'"\\ud83d"', b'"\\ufffd"'),
    ],
)
def test_json_stays_as_it_was_written(cluster: Cluster, written: bytes, published: bytes) -> None:
    there = Listener(cluster, "news")
    cluster.call("publish", embeddable(b'{"channel":"news","data":%b}' % written))
    assert [(one.data, one.format) for one in there.now()] == [(published, Format.JSON)]


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (b'{"a":1}', Format.JSON),
        (b"\x00\xff", Format.BINARY),
        (b'{"a":\n1}', Format.BINARY),
        (b"plain", Format.BINARY),
    ],
)
def test_bytes(cluster: Cluster, data: bytes, format: Format) -> None:
    there = Listener(cluster, "news")
    text = base64.b64encode(data).decode()
    cluster.call("publish", {"channel": "news", "b64data": text, "data": "not this"})
    cluster.call("broadcast", {"channels": ["news"], "b64data": text, "data": None})
    assert [(one.data, one.format) for one in there.now()] == [(data, format)] * 2


@pytest.mark.parametrize(
    ("method", "written"),
    [
        ("publish", b'{"channel":"news","data":%b}'),
        ("broadcast", b'{"channels":["news"],"data":%b}'),
        ("subscribe", b'{"user":"17","channel":"news","data":%b}'),
        ("batch", b'{"commands":[{"publish":{"channel":"news","data":%b}}]}'),
    ],
)
def test_what_is_nested_too_deeply_is_a_bad_request(cluster: Cluster, method: str, written: bytes) -> None:
    """The reader's limit counts the calls around it, so what HTTP could still read may be too deep here."""
    there = Listener(cluster, "news")
    depth = sys.getrecursionlimit()
    assert code(cluster, method, written % (b"[" * depth + b"]" * depth)) == 107
    assert there.now() == []


def test_what_a_publication_carries(cluster: Cluster) -> None:
    asked: list[tuple[Any, ...]] = []

    def publish(*given: Any) -> Deferred[Position]:
        asked.append(given)
        return succeed(Position("e", 3))

    cluster.first.hub.publish = publish  # type: ignore[method-assign, assignment]
    given = {
        "channel": "room:1",
        "data": 1,
        "tags": {"a": "b"},
        "idempotency_key": "once",
        "delta": True,
        "version": 2**64 - 1,
        "version_epoch": "v",
    }
    assert cluster.call("publish", given) == {"offset": 3, "epoch": "e"}
    options = PublishOptions(
        history=KEPT,
        tags={"a": "b"},
        idempotency_key="once",
        delta=True,
        version=2**64 - 1,
        version_epoch="v",
    )
    assert asked == [("room:1", b"1", Format.JSON, 0, options)]
    cluster.call("publish", {**given, "skip_history": True})
    assert asked[1][4].history is None
    cluster.call("publish", {"channel": "delta:1", "data": 1})
    assert asked[2][4] == PublishOptions(delta=True)


def test_an_idempotent_publication_is_made_once(cluster: Cluster) -> None:
    given = {"channel": "room:1", "data": 1, "idempotency_key": "k"}
    first = cluster.call("publish", given)
    assert cluster.call("publish", given, shard=cluster.second) == first
    assert cluster.call("history", {"channel": "room:1"})["offset"] == 1


def test_an_old_version_is_dropped(cluster: Cluster) -> None:
    for version in (5, 4, 5, 6):
        top = cluster.call("publish", {"channel": "room:1", "data": version, "version": version})
    assert top["offset"] == 2
    found = cluster.call("history", {"channel": "room:1", "limit": -1})
    assert [one["data"] for one in found["publications"]] == [5, 6]


def test_skipped_history(cluster: Cluster) -> None:
    assert cluster.call("publish", {"channel": "room:1", "data": 1, "skip_history": True}) == {}
    assert cluster.call("history", {"channel": "room:1", "limit": -1})["publications"] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 107),
        (None, 107),
        ([], 107),
        ("text", 107),
        ({"data": 1}, 107),
        ({"channel": "", "data": 1}, 107),
        ({"channel": "x" * 256, "data": 1}, 107),
        ({"channel": "a"}, 107),
        ({"channel": 5, "data": 1}, 107),
        ({"channel": "a", "b64data": "?"}, 107),
        ({"channel": "a", "b64data": "YQ"}, 107),
        ({"channel": "a", "data": 1, "tags": {"a": 1}}, 107),
        ({"channel": "a", "data": 1, "tags": []}, 107),
        ({"channel": "a", "data": 1, "version": -1}, 107),
        (b'{"channel":"a","data":1,"version":18446744073709551616}', 107),
        (b'{"channel":"a","data":1,"version":1e999}', 107),
        ({"channel": "a", "data": 1, "skip_history": "yes"}, 107),
        ({"channel": "nope:1", "data": 1}, 102),
    ],
)
def test_what_cannot_be_published(cluster: Cluster, arguments: Any, expected: int) -> None:
    assert code(cluster, "publish", arguments) == expected
    assert cluster.first.hub.counters.published == 0


def test_null_is_as_absent_and_unknown_fields_are_passed_over(cluster: Cluster) -> None:
    nothing = dict.fromkeys(("b64data", "tags", "skip_history", "idempotency_key", "delta", "version"))
    assert cluster.call("publish", {"channel": "a", "data": None, **nothing, "other": [1, {}]}) == {}
    asked = decoded(Publish, b'{"channel":null,"tags":{"a":null,"b":"c"},"data":{"kept":null}}')
    assert (asked.channel, asked.tags, bytes(asked.data)) == ("", {"b": "c"}, b'{"kept":null}')


def test_a_hub_that_is_away(cluster: Cluster) -> None:
    cluster.exchange.cut()
    for method, arguments in (
        ("publish", {"channel": "a", "data": 1}),
        ("presence", {"channel": "room:1"}),
        ("history", {"channel": "room:1"}),
        ("history_remove", {"channel": "room:1"}),
        ("subscribe", {"user": "ann", "channel": "a"}),
        ("channels", {}),
        ("info", {}),
    ):
        assert code(cluster, method, arguments) == 100
    assert cluster.first.counters.api_errors[100] == 7


def test_a_publication_that_is_too_large(cluster: Cluster) -> None:
    cluster.first.hub.MAX_PUBLICATION_BYTES = 5
    assert code(cluster, "publish", {"channel": "a", "data": "123456"}) == 107


def test_what_nobody_foresaw_is_logged_and_not_told(cluster: Cluster) -> None:
    def broken() -> Any:
        raise RuntimeError("a secret")

    def refused(channel: str) -> Any:
        raise HubRefused("memory", "no permission")

    cluster.first.hub.roster = broken  # type: ignore[method-assign]
    cluster.first.hub.presence_stats = refused  # type: ignore[method-assign]
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        assert code(cluster, "info") == 100
        assert code(cluster, "presence_stats", {"channel": "room:1"}) == 100
        assert code(cluster, "publish", {}) == 107
    finally:
        globalLogPublisher.removeObserver(events.append)
    told = [event for event in events if event["log_level"].name == "error"]
    assert [event["method"] for event in told] == ["info", "presence_stats"]


# --- broadcast -----------------------------------------------------------------------------------------


def test_broadcast_answers_for_each_channel(cluster: Cluster) -> None:
    found = cluster.call("broadcast", {"channels": ["a", "nope:b", "room:1", "", "room:1"], "data": 1})
    epoch = found["responses"][2]["result"]["epoch"]
    assert found == {
        "responses": [
            {"result": {}},
            {"error": {"code": 102, "message": "unknown channel"}},
            {"result": {"offset": 1, "epoch": epoch}},
            {"error": {"code": 107, "message": "bad request"}},
            {"result": {"offset": 2, "epoch": epoch}},
        ]
    }
    assert cluster.first.counters.api_errors[102] == 1
    assert cluster.first.counters.api_calls["broadcast"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"data": 1}, 107),
        ({"channels": [], "data": 1}, 107),
        ({"channels": None, "data": 1}, 107),
        ({"channels": ["a"]}, 107),
        ({"channels": ["a", 5], "data": 1}, 107),
        ({"channels": ["a"] * (methods.BROADCAST_MAX_CHANNELS + 1), "data": 1}, 106),
    ],
)
def test_what_cannot_be_broadcast(cluster: Cluster, arguments: Any, expected: int) -> None:
    assert code(cluster, "broadcast", arguments) == expected
    assert cluster.first.hub.counters.published == 0


def test_a_hub_that_is_away_is_told_for_each_channel(cluster: Cluster) -> None:
    cluster.exchange.cut()
    found = cluster.call("broadcast", {"channels": ["a", "nope:b"], "data": 1})
    assert [one["error"]["code"] for one in found["responses"]] == [100, 102]


# --- clients -------------------------------------------------------------------------------------------


def test_subscribe(cluster: Cluster) -> None:
    one = cluster.second.clients.add("ann", "c1")
    cluster.second.clients.add("ann", "c2")
    given = {
        "user": "ann",
        "channel": "room:1",
        "client": "c1",
        "session": "s-c1",
        "info": {"i": 1.0},
        "data": [1],
        "recover_since": {"offset": 2**64 - 1, "epoch": "e"},
        "override": {"presence": {"value": True}, "force_recovery": {"value": False}, "join_leave": None},
        "expire_at": 9,
    }
    assert cluster.call("subscribe", given) == {}
    assert one.heard == [
        SubscribeOptions(
            info=b'{"i":1.0}',
            data=b"[1]",
            recover_since=Position("e", 2**64 - 1),
            override=Override(presence=True, force_recovery=False),
            expire_at=9,
        )
    ]
    cluster.call("subscribe", {"user": "ann", "channel": "room:2", "b64info": "/w==", "b64data": "AA=="})
    assert one.heard[1] == SubscribeOptions(info=b"\xff", data=b"\x00")
    cluster.call("subscribe", {"user": "ann", "channel": "room:3", "info": None, "data": None})
    assert one.heard[2] == SubscribeOptions()


def test_the_empty_user_is_the_anonymous_one(cluster: Cluster) -> None:
    one = cluster.second.clients.add("", "c1")
    for method in ("subscribe", "refresh", "unsubscribe", "disconnect"):
        assert cluster.call(method, {"user": "", "channel": "room:1"}) == {}
        if method == "subscribe":
            assert one.channels == {"room:1"}
    assert one.channels == set() and cluster.second.clients.connections == []
    assert one.heard[1:] == [(False, 0, b""), codes.FORCE_DISCONNECT]


def test_unsubscribe_without_a_channel_is_from_all(cluster: Cluster) -> None:
    one = cluster.first.clients.add("ann", "c1", "a", "b", "c")
    cluster.call("unsubscribe", {"user": "ann", "channel": "b"})
    assert one.channels == {"a", "c"}
    cluster.call("unsubscribe", {"user": "ann"})
    assert one.channels == set()


def test_disconnect_with_a_reason_and_a_whitelist(cluster: Cluster) -> None:
    one, kept = cluster.second.clients.add("ann", "c1"), cluster.first.clients.add("ann", "c2")
    given = {"user": "ann", "whitelist": ["c2"], "disconnect": {"code": 4500, "reason": "banned"}}
    assert cluster.call("disconnect", given) == {}
    assert (one.heard, kept.heard) == ([codes.Disconnect(4500, "banned")], [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, (3503, "force disconnect")),
        ({}, (3503, "force disconnect")),
        ({"reason": "out"}, (3503, "out")),
        ({"code": 3001}, (3001, "shutdown")),
        ({"code": 4123}, (4123, "")),
    ],
)
def test_reasons_of_disconnects(cluster: Cluster, given: Any, expected: tuple[int, str]) -> None:
    one = cluster.first.clients.add("ann", "c1")
    cluster.call("disconnect", {"user": "ann", "disconnect": given})
    assert one.heard == [expected]


def test_refresh(cluster: Cluster) -> None:
    one = cluster.second.clients.add("ann", "c1")
    cluster.call("refresh", {"user": "ann", "client": "c1", "expire_at": 5, "info": {"n": 1}})
    cluster.call("refresh", {"user": "ann", "expired": True})
    assert one.heard == [(False, 5, b'{"n":1}'), (True, 0, b"")]


@pytest.mark.parametrize(
    ("method", "arguments", "expected"),
    [
        ("subscribe", {"user": "ann"}, 107),
        ("subscribe", {"user": "ann", "channel": "nope:1"}, 102),
        ("subscribe", {"user": 5, "channel": "a"}, 107),
        ("subscribe", {"user": "ann", "channel": "a", "b64info": "!"}, 107),
        ("subscribe", {"user": "ann", "channel": "a", "b64data": "!"}, 107),
        ("subscribe", {"user": "ann", "channel": "a", "recover_since": {"offset": -1}}, 107),
        ("subscribe", {"user": "ann", "channel": "a", "override": {"presence": True}}, 107),
        ("subscribe", {"user": "ann", "channel": "a", "expire_at": "soon"}, 107),
        ("unsubscribe", {"user": "ann", "channel": "nope:1"}, 102),
        ("disconnect", {"user": "ann", "whitelist": "c1"}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 1000}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 5000}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 4000, "reason": "я" * 62}}, 107),
        ("refresh", {"user": "ann", "expire_at": 2**63}, 107),
    ],
)
def test_what_clients_cannot_be_told(cluster: Cluster, method: str, arguments: Any, expected: int) -> None:
    one = cluster.first.clients.add("ann", "c1", "a")
    assert code(cluster, method, arguments) == expected
    assert (one.heard, one.channels) == ([], {"a"})


def test_a_shard_that_fails_is_an_internal_error(cluster: Cluster) -> None:
    cluster.second.clients.refuses = RuntimeError("broken")
    assert code(cluster, "subscribe", {"user": "ann", "channel": "a"}) == 100


# --- presence and history ------------------------------------------------------------------------------


def test_presence(cluster: Cluster) -> None:
    there = [
        ClientInfo("ann", "c1", b'{"a": 1}', b"[]"),
        ClientInfo("ann", "c2", b"\xff"),
        ClientInfo("", "c3"),
    ]
    for info in there:
        cluster.outcome(cluster.second.hub.add_presence("room:1", info, 60))
    assert cluster.call("presence", {"channel": "room:1"}) == {
        "presence": {
            "c1": {"client": "c1", "user": "ann", "conn_info": {"a": 1}, "chan_info": []},
            "c2": {"client": "c2", "user": "ann"},
            "c3": {"client": "c3", "user": ""},
        }
    }
    assert cluster.call("presence_stats", {"channel": "room:1"}) == {"num_clients": 3, "num_users": 2}
    assert cluster.call("presence", {"channel": "room:2"}) == {"presence": {}}
    assert cluster.call("presence_stats", {"channel": "room:2"}) == {"num_clients": 0, "num_users": 0}


def numbers(found: dict[str, Any]) -> list[int]:
    return [one["offset"] for one in found["publications"]]


def test_history(cluster: Cluster) -> None:
    empty = cluster.call("history", {"channel": "room:1"})
    assert empty == {"publications": [], "epoch": empty["epoch"], "offset": 0}
    for number in range(1, 8):
        cluster.call("publish", {"channel": "room:1", "data": {"n": number}, "tags": {"t": "x"}})
    ask = {"channel": "room:1"}
    assert cluster.call("history", ask) == {**empty, "offset": 7}
    found = cluster.call("history", {**ask, "limit": -1})
    assert numbers(found) == [3, 4, 5, 6, 7]
    assert found["publications"][0] == {"data": {"n": 3}, "offset": 3, "tags": {"t": "x"}}
    assert numbers(cluster.call("history", {**ask, "limit": 2})) == [3, 4]
    assert numbers(cluster.call("history", {**ask, "limit": 2, "reverse": True})) == [7, 6]
    assert numbers(cluster.call("history", {**ask, "limit": 9, "since": {"offset": 5}})) == [6, 7]
    place = {"offset": 5, "epoch": empty["epoch"]}
    assert numbers(cluster.call("history", {**ask, "limit": 1, "since": place, "reverse": True})) == [4]
    assert code(cluster, "history", {**ask, "limit": 1, "since": {**place, "epoch": "other"}}) == 112
    assert code(cluster, "history", {**ask, "limit": 0, "since": {**place, "epoch": "other"}}) == 112
    assert cluster.call("history_remove", ask) == {}
    assert cluster.call("history", {**ask, "limit": -1}) == {**empty, "offset": 7}


def test_publications_of_clients_and_of_other_formats(cluster: Cluster) -> None:
    hub, options = cluster.second.hub, PublishOptions(history=KEPT, info=ClientInfo("ann", "c1", b"{}"))
    for data, format in ((b"1", Format.JSON), (b"hi\r\n", Format.TEXT), (b"\xff", Format.BINARY)):
        cluster.outcome(hub.publish("room:1", data, format, 0, options))
    info = {"client": "c1", "user": "ann", "conn_info": {}}
    assert cluster.call("history", {"channel": "room:1", "limit": -1})["publications"] == [
        {"data": 1, "offset": 1, "info": info},
        {"data": "hi", "offset": 2, "info": info},
        {"data": None, "offset": 3, "b64data": "/w==", "info": info},
    ]


def test_a_long_history_is_read_in_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 2 * methods.HISTORY_PAGE + 50
    cluster.call("broadcast", {"channels": ["large:1"] * total, "data": "x" * 100})
    ask = {"channel": "large:1", "limit": -1}
    assert numbers(cluster.call("history", ask)) == list(range(1, total + 1))
    assert numbers(cluster.call("history", {**ask, "reverse": True})) == list(range(total, 0, -1))
    assert len(numbers(cluster.call("history", {**ask, "limit": 2 * methods.HISTORY_PAGE}))) == 400
    assert len(numbers(cluster.call("history", {**ask, "limit": methods.HISTORY_PAGE + 1}))) == 201
    monkeypatch.setattr(methods, "HISTORY_MAX_PUBLICATIONS", 210)
    assert len(numbers(cluster.call("history", ask))) == 210
    assert len(numbers(cluster.call("history", {**ask, "limit": 2**62}))) == 210
    monkeypatch.setattr(methods, "HISTORY_MAX_BYTES", 205 * 102)
    found = cluster.call("history", ask)
    assert (len(numbers(found)), found["offset"]) == (205, total)


def test_a_stream_that_is_lost_while_it_is_read(cluster: Cluster) -> None:
    cluster.call("broadcast", {"channels": ["large:1"] * (methods.HISTORY_PAGE + 1), "data": 1})
    history, pages = cluster.first.hub.history, []

    async def other(*args: Any, **more: Any) -> Any:
        page = await history(*args, **more)
        pages.append(page)
        return page if len(pages) == 1 else type(page)(Position("another", 9), page.publications)

    cluster.first.hub.history = (  # type: ignore[method-assign]
        lambda *args, **more: Deferred.fromCoroutine(other(*args, **more))
    )
    assert code(cluster, "history", {"channel": "large:1", "limit": -1}) == 100


@pytest.mark.parametrize("method", ["presence", "presence_stats", "history", "history_remove"])
def test_what_is_off_or_unknown(cluster: Cluster, method: str) -> None:
    assert code(cluster, method, {}) == 107
    assert code(cluster, method, {"channel": 1}) == 107
    assert code(cluster, method, {"channel": "nope:1"}) == 102
    assert code(cluster, method, {"channel": "a"}) == 108


@pytest.mark.parametrize(
    "more",
    [
        {"limit": "1"},
        {"limit": 1.5},
        {"limit": 2**63},
        {"since": {"offset": 2**64}},
        {"since": 5},
        {"reverse": True, "since": {"offset": 0}},
    ],
)
def test_bad_questions_about_history(cluster: Cluster, more: dict[str, Any]) -> None:
    assert code(cluster, "history", json.dumps({"channel": "room:1", **more}).encode()) == 107


# --- the cluster ---------------------------------------------------------------------------------------


def test_channels(cluster: Cluster) -> None:
    cluster.first.clients.add("ann", "c1", "room:1", "news")
    cluster.second.clients.add("bob", "c2", "room:1", "room:2")
    every = {"news": {"num_clients": 1}, "room:1": {"num_clients": 2}, "room:2": {"num_clients": 1}}
    for nothing in (None, {}, {"pattern": ""}, {"pattern": None}, {"pattern": "*"}):
        assert cluster.call("channels", nothing) == {"channels": every}
    assert cluster.call("channels", {"pattern": "room:[2-9]"}) == {"channels": {"room:2": {"num_clients": 1}}}
    assert cluster.call("channels", {"pattern": "x"}) == {"channels": {}}
    assert code(cluster, "channels", {"pattern": "["}) == 107
    assert code(cluster, "channels", {"pattern": 5}) == 107


def test_too_many_channels(cluster: Cluster) -> None:
    cluster.second.clients.add("ann", "c1", *(f"{number:0250}" for number in range(4000)))
    assert code(cluster, "channels", {}) == 106


def test_info(cluster: Cluster) -> None:
    cluster.second.clients.add("ann", "c1", "room:1", "room:2")
    cluster.second.clients.add("ann", "c2", "room:1")
    nothing = {"num_clients": 0, "num_users": 0, "num_subs": 0, "num_channels": 0}
    something = {"num_clients": 2, "num_users": 1, "num_subs": 3, "num_channels": 2}
    assert cluster.call("info", b"") == {
        "nodes": [
            {"uid": "00000000000000a0", "name": "here-0", "version": "0.1", **nothing, "uptime": 7},
            {"uid": "00000000000000a1", "name": "here-1", "version": "0.1", **something, "uptime": 7},
        ]
    }
    assert code(cluster, "info", []) == 107
    load = replace(cluster.second._load(), app="game:Game 2")
    cluster.second.hub.enter(lambda: load, lambda incumbent: None)
    here, there = cluster.call("info", b"")["nodes"]
    assert (here.get("app"), there["app"]) == (None, "game:Game 2")


def test_rpc_and_unknown_methods(cluster: Cluster) -> None:
    assert code(cluster, "rpc", {"method": "x", "params": {}}) == 104
    assert code(cluster, "rpc", {}) == 107
    for name in ("", "connections", "map_publish", "__init__", "_publish", "call"):
        assert code(cluster, name, {}) == 104


# --- batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True, None])
def test_batch(cluster: Cluster, parallel: bool | None) -> None:
    given = [
        {"publish": {"channel": "room:1", "data": 1}},
        {"presence": {"channel": "a"}},
        {"publish": None, "info": {}, "later": {}},
        {"history": {"channel": "room:1", "limit": 1}},
        {"explode": {}},
        {},
        {"publish": {}, "info": {}},
        {"batch": {"commands": []}},
        {"publish": 5},
    ]
    replies = cluster.call("batch", {"commands": given, "parallel": parallel})["replies"]
    epoch = replies[0]["publish"]["epoch"]
    not_found = {"error": {"code": 104, "message": "method not found"}}
    bad = {"error": {"code": 107, "message": "bad request"}}
    assert replies[0] == {"publish": {"offset": 1, "epoch": epoch}}
    assert replies[1] == {"error": {"code": 108, "message": "not available"}}
    assert len(replies[2]["info"]["nodes"]) == 2
    assert replies[3]["history"]["offset"] == 1
    assert replies[4:] == [not_found, not_found, bad, bad, bad]
    assert cluster.first.counters.api_calls["publish"] == 2
    assert cluster.first.counters.api_calls["batch"] == 1
    assert cluster.first.counters.api_errors[107] == 3


class _Slow:
    """Presence that is answered when it is told to."""

    def __init__(self, shard: Shard) -> None:
        self.waiting: list[Deferred[dict[str, ClientInfo]]] = []
        shard.hub.presence = self._presence  # type: ignore[method-assign]

    def _presence(self, channel: str) -> Deferred[dict[str, ClientInfo]]:
        self.waiting.append(Deferred())
        return self.waiting[-1]


def test_a_batch_runs_in_order_or_so_many_at_a_time(cluster: Cluster) -> None:
    count = methods.BATCH_PARALLEL + 3
    commands = [{"presence": {"channel": "room:1"}}] * count
    slow = _Slow(cluster.first)
    body = json.dumps({"commands": commands}).encode()
    done: list[bytes] = []
    cluster.first.methods.call("batch", body).addCallback(done.append)
    for index in range(count):
        assert (len(slow.waiting), done) == (index + 1, [])
        slow.waiting[index].callback({})
    assert done == [b'{"replies":[%b]}' % b",".join([b'{"presence":{"presence":{}}}'] * count)]
    del slow.waiting[:], done[:]
    body = json.dumps({"commands": commands, "parallel": True}).encode()
    cluster.first.methods.call("batch", body).addCallback(done.append)
    assert len(slow.waiting) == methods.BATCH_PARALLEL
    for waiting in slow.waiting[::-1]:
        waiting.callback({})
    for waiting in slow.waiting[methods.BATCH_PARALLEL :]:
        waiting.callback({})
    assert len(json.loads(done[0])["replies"]) == len(slow.waiting) == count


def test_what_is_no_batch(cluster: Cluster) -> None:
    assert cluster.call("batch", {}) == cluster.call("batch", {"commands": []}) == {"replies": []}
    assert code(cluster, "batch", {"commands": [5]}) == 107
    assert code(cluster, "batch", {"commands": {}}) == 107
    assert code(cluster, "batch", {"commands": [{}] * (methods.BATCH_MAX_COMMANDS + 1)}) == 106
