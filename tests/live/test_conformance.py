"""What the protocol asks of a server, on the wire: frames, order, shapes, pings and codes (items 1 to 5).

The numbers are those of the list that the server was made after; its other items are tested beside this.
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from tests.live.cluster import STRICT_SHARD, Cluster, token
from tests.live.raw import Gone, JsonClient, ProtobufClient, delimited, pb, requested, varint
from tests.node.minting import RSA_KEY

pytestmark = pytest.mark.live

BAD_REQUEST = (3501, "bad request")


# --- 1 --------------------------------------------------------------------------------------------------


def test_01_codecs_batching_and_subprotocols(cluster: Cluster) -> None:
    said = "Sec-WebSocket-Protocol"
    json_ways: list[tuple[dict[str, Any], str | None]] = [
        ({}, None),
        ({"subprotocols": ["centrifuge-json"]}, "centrifuge-json"),
        ({"subprotocols": ["something-else"]}, None),
        # A header without a value: some SDKs send it.
        ({"additional_headers": {said: ""}}, None),
    ]
    for options, answered in json_ways:
        with JsonClient(cluster.url(0), **options) as client:
            assert client.ws.response is not None
            assert client.ws.response.headers.get(said) == answered, options
            client.connected(token=token("u"))
            assert all(isinstance(frame, str) for frame in client.frames)
    protobuf_ways: list[tuple[str, dict[str, Any], str | None]] = [
        ("", {"subprotocols": ["centrifuge-protobuf"]}, "centrifuge-protobuf"),
        ("", {"subprotocols": ["centrifuge-json", "centrifuge-protobuf"]}, "centrifuge-protobuf"),
        ("?cf_protocol=protobuf", {}, None),
        ("?format=protobuf", {}, None),
    ]
    for query, options, answered in protobuf_ways:
        with ProtobufClient(cluster.url(0), query, **options) as client:
            assert client.ws.response is not None
            assert client.ws.response.headers.get(said) == answered, (query, options)
            result = client.ask(connect=pb.ConnectRequest(token=token("u"))).connect
            assert result.client and result.version and (result.ping, result.pong) == (25, True)
            assert all(isinstance(frame, bytes) for frame in client.frames)


def test_01_json_commands_of_one_frame(cluster: Cluster) -> None:
    channel = cluster.fresh("room")
    with cluster.json() as client:
        # The last line may end with a newline. Unknown fields, at any place, are passed over; so is null.
        client.send(
            json.dumps({"connect": {"token": token("u"), "name": "js", "new": {"a": [1]}}, "id": 1, "x": 2})
            + "\n"
            + json.dumps({"id": 2, "subscribe": {"channel": channel, "flag": 1, "hm": None, "token": None}})
            + "\n"
            + json.dumps({"id": 3, "unsubscribe": {"channel": channel}})
            + "\n"
        )
        assert "connect" in client.reply(1)
        assert client.reply(2) == {"subscribe": {}}
        assert client.reply(3) == {"unsubscribe": {}}
        count = len(client.frames)
        client.say(*({"id": number, "unsubscribe": {"channel": "x"}} for number in range(10, 20)))
        for number in range(10, 20):
            assert client.reply(number) == {"unsubscribe": {}}
        assert client.frames[count:] == [
            "\n".join(f'{{"id":{number},"unsubscribe":{{}}}}' for number in range(10, 20))
        ]


def test_01_protobuf_commands_of_one_frame(cluster: Cluster) -> None:
    channel = cluster.fresh("room")
    with cluster.protobuf() as client:
        connect = pb.Command(id=1, connect=pb.ConnectRequest(token=token("u")))
        subscribe = pb.Command(id=2, subscribe=pb.SubscribeRequest(channel=channel, flag=1))
        unknown = subscribe.SerializeToString() + b"\xfa\x3f\x03new"  # field 1023
        client.send(delimited(connect) + varint(len(unknown)) + unknown)
        assert client.wait(lambda each: each.id == 1).HasField("connect")
        assert client.wait(lambda each: each.id == 2).HasField("subscribe")
        # Data is of no meaning to the server, but a result without fields is there.
        data = bytes(range(256))
        reply = client.ask(publish=pb.PublishRequest(channel=channel, data=data))
        assert reply.HasField("publish") and not reply.HasField("error")
        push = client.push("pub", channel)
        assert push.data == data and push.info.user == "u"
        client.send(b"\x00")  # a pong that nobody asked for
        assert client.ask(unsubscribe=pb.UnsubscribeRequest(channel=channel)).HasField("unsubscribe")
    with cluster.protobuf() as client:
        client.send(bytes.fromhex("0408012200"))  # id 1, connect without fields
        assert client.ended() == (3501, "bad request: no credentials")


@pytest.mark.parametrize(
    "frame",
    [
        *("", "\n", '{"id":7,"unsubscribe":{"channel":"x"}}\n\n{}', "{", "[]", "7", "{} {}", '{"id":"7"}'),
        *('{"id":7}', '{"id":7,"fly":{}}', '{"id":-7,"rpc":{}}', '{"id":7,"ping":{}}', '{"id":7,"rpc":[]}'),
    ],
)
def test_01_a_frame_that_is_none_ends_the_connection(cluster: Cluster, frame: str) -> None:
    with cluster.user() as client:
        client.send(frame)
        assert client.ended() == BAD_REQUEST


@pytest.mark.parametrize("frame", [b"", b"\x05\x08", b"\xff" * 11, b"\x02\x08\x07", b"\x01\x07"])
def test_01_a_binary_frame_that_is_none_ends_the_connection(cluster: Cluster, frame: bytes) -> None:
    with cluster.protobuf() as client:
        client.ask(connect=pb.ConnectRequest(token=token("u")))
        client.send(frame)
        assert client.ended() == BAD_REQUEST


def test_01_a_message_over_the_limit(cluster: Cluster) -> None:
    with cluster.user() as client:
        fits = json.dumps({"id": 7, "rpc": {"data": ""}})
        client.send(fits.replace('""', '"' + "x" * (65536 - len(fits)) + '"'))
        assert client.reply(7)["error"]["code"] == 108
        client.send("x" * 65537)
        assert client.ended()[0] == 1009


def test_01_origins(cluster: Cluster) -> None:
    with cluster.json(origin="https://game.EXAMPLE.com") as client:
        client.connected(token=token("u"))
    for origin in ("https://example.org", "http://game.example.com", "null"):
        with pytest.raises(InvalidStatus) as refused:
            cluster.json(origin=origin)
        assert refused.value.response.status_code == 403
    assert requested(cluster.ports[0], "GET", "/connection/websocket/").status == 404


# --- 2 --------------------------------------------------------------------------------------------------


def test_02_commands_in_order_after_a_slow_connect(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:room")
    assert cluster.keys is not None and cluster.keys.asked == 0, "the keys must not have been fetched yet"
    text = jwt.encode({"sub": cluster.fresh("u")}, RSA_KEY, algorithm="RS256", headers={"kid": "rsa"})
    with cluster.json(STRICT_SHARD) as client:
        began = time.monotonic()
        client.say(
            {"connect": {"token": text, "name": "js"}, "id": 1},
            {"subscribe": {"channel": channel, "flag": 1}, "id": 2},
            {"publish": {"channel": channel, "data": "a"}, "id": 3},
        )
        # Further frames wait as well.
        client.say({"publish": {"channel": channel, "data": "b"}, "id": 4}, "{}")
        client.say({"unsubscribe": {"channel": channel}, "id": 5})
        seen: list[Any] = []
        while not {1, 2, 3, 4, 5} <= set(seen):
            found = client.take()
            seen.append(found["push"]["pub"]["data"] if "push" in found else found["id"])
        assert time.monotonic() - began >= 0.4 and cluster.keys.asked == 1
        assert seen[:2] == [1, 2], "the connect reply is the first, and no publication before its subscribe"
        assert seen.index(3) < seen.index(4)
        kept = cluster.api("history", channel=channel, limit=10)["publications"]
        assert [each["data"] for each in kept] == ["a", "b"]


def test_02_publications_of_a_frame_follow_its_subscribe(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:room")
    with cluster.json() as client:
        client.say(
            {"id": 1, "connect": {"token": token("u")}},
            {"id": 2, "subscribe": {"channel": channel}},
            *({"id": 10 + n, "publish": {"channel": channel, "data": n}} for n in range(20)),
        )
        assert [client.take()["id"] for _ in range(2)] == [1, 2]
        assert client.heard(channel, 20) == list(range(20))
        assert all(client.reply(10 + n) == {"publish": {}} for n in range(20))


@pytest.mark.parametrize(
    "command",
    [
        {"id": 1, "subscribe": {"channel": "x"}},
        {"id": 1, "publish": {"channel": "x", "data": 1}},
        {"id": 1, "rpc": {}},
        {"send": {"data": 1}},
    ],
)
def test_02_nothing_comes_before_connect(cluster: Cluster, command: dict[str, Any]) -> None:
    with cluster.json() as client:
        client.say(command)
        assert client.ended() == BAD_REQUEST
        assert client.frames == []


def test_02_one_connect_only(cluster: Cluster) -> None:
    with cluster.user() as client:
        client.say({"id": 2, "connect": {"token": token("u")}})
        assert client.ended() == BAD_REQUEST


def test_02_a_connect_that_was_refused(cluster: Cluster) -> None:
    with cluster.json() as client:
        client.say(
            {"id": 1, "connect": {"token": token("u", exp=1)}}, {"id": 2, "subscribe": {"channel": "x"}}
        )
        assert client.take() == {"id": 1, "error": {"code": 109, "message": "token expired"}}
        # What was behind it is dropped; what comes then is too late.
        client.say({"id": 3, "subscribe": {"channel": "x"}})
        assert client.ended() == BAD_REQUEST
        assert len(client.frames) == 1


# --- 3 --------------------------------------------------------------------------------------------------


def test_03_shapes_of_results(cluster: Cluster) -> None:
    room, live, kept = cluster.fresh("room"), cluster.fresh("live:"), cluster.fresh("kept:")
    with cluster.json() as client:
        client.say({"id": 1, "connect": {"token": token("u")}})
        result = client.reply(1)["connect"]
        assert result == {"client": result["client"], "version": result["version"], "ping": 25, "pong": True}
        assert len(result["client"]) == 36 and result["version"].startswith("spread ")
        for id, command, text in (
            (2, {"subscribe": {"channel": room}}, '"subscribe":{}'),
            (3, {"publish": {"channel": room, "data": {}}}, '"publish":{}'),
            (4, {"unsubscribe": {"channel": room}}, '"unsubscribe":{}'),
            (5, {"unsubscribe": {"channel": "never"}}, '"unsubscribe":{}'),
            # What is always there, whatever its value.
            (6, {"presence": {"channel": live}}, '"presence":{"presence":{}}'),
            (7, {"presence_stats": {"channel": live}}, '"presence_stats":{"num_clients":0,"num_users":0}'),
            (8, {"publish": {"channel": room}}, '"error":{"code":107,"message":"bad request"}'),
        ):
            client.say({"id": id} | command)
            client.reply(id)
            assert f'{{"id":{id},{text}}}' in str(client.frames[-1]).split("\n")
        history = client.ask("history", channel=kept)["history"]
        assert history == {"publications": [], "epoch": history["epoch"], "offset": 0}
        assert history["epoch"].isalpha() and len(history["epoch"]) == 8
        subscribed = client.ask("subscribe", channel=kept)["subscribe"]
        # No offset 0, no false, no empty list.
        assert subscribed == {"recoverable": True, "positioned": True, "epoch": history["epoch"]}
        client.ask("publish", channel=kept, data=None)
        push = client.push("pub", kept)
        info = {"user": "u", "client": result["client"]}
        assert push == {"data": None, "offset": 1, "epoch": history["epoch"], "info": info}
        client.ask("publish", channel=kept, data=False)
        assert client.push("pub", kept) == {"data": False, "offset": 2, "info": info}
        assert client.ask("presence", channel=kept)["presence"] == {"presence": {result["client"]: info}}
        page = client.ask("history", channel=kept, limit=1, since={"offset": 1, "epoch": history["epoch"]})
        assert page["history"] == {
            "publications": [{"data": False, "offset": 2, "info": info}],
            "epoch": history["epoch"],
            "offset": 2,
        }


def test_03_anonymous_users_are_named_too(cluster: Cluster) -> None:
    channel = cluster.fresh("open:")
    with cluster.json() as client:
        me = client.connected(token=jwt_without_user())["client"]
        client.ask("subscribe", channel=channel)
        assert client.ask("presence", channel=channel)["presence"]["presence"] == {
            me: {"user": "", "client": me}
        }
        assert client.ask("presence_stats", channel=channel)["presence_stats"] == {
            "num_clients": 1,
            "num_users": 1,
        }


def jwt_without_user() -> str:
    return token("", iat=int(time.time()))


def test_03_payloads_are_embedded_as_they_are_on_one_line(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    exact = '{"b":1.0,"a":1e5,"big":123456789012345678901234567890,"s":"\\u00e9\\n é","a":[1, 2 ]}'
    with cluster.user() as client:
        client.ask("subscribe", channel=channel)
        client.say(f'{{"id":7,"publish":{{"channel":"{channel}","data":{exact}}}}}')
        client.push("pub", channel)
        assert any(f'"data":{exact}' in str(frame) for frame in client.frames)
        # Line breaks between tokens would end the object; they go.
        data = '{\n  "a": [\r\n1,\n 2],\n "b": "x\\ny"\n}'
        body = f'{{"channel":"{channel}","data":{data}}}'
        assert cluster.post("/api/publish", body).status == 200
        assert client.push("pub", channel)["data"] == {"a": [1, 2], "b": "x\ny"}
        with cluster.protobuf(1) as other:
            other.ask(connect=pb.ConnectRequest(token=token("p")))
            other.ask(subscribe=pb.SubscribeRequest(channel=channel))
            pretty = b'{\n "a":\r\n 1\n}'
            other.ask(publish=pb.PublishRequest(channel=channel, data=pretty))
            assert other.push("pub", channel).data == pretty
        assert client.push("pub", channel)["data"] == {"a": 1}
        values: list[Any] = [None, True, 0, -1.5, "text", [], {}, [[[]]], "\u2028"]
        for value in values:
            client.ask("publish", channel=channel, data=value)
            assert client.push("pub", channel)["data"] == value


# --- 4 --------------------------------------------------------------------------------------------------


def test_04_pings_on_schedule_under_traffic(cluster: Cluster) -> None:
    channel = cluster.fresh("room")
    with cluster.json(STRICT_SHARD, answers_pings=False) as client:
        result = client.connected(token=token(cluster.fresh("u")))
        began = time.monotonic()
        assert (result["ping"], result["pong"]) == (1, True)
        client.ask("subscribe", channel=channel)
        at: list[float] = []
        said = 0
        while len(at) < 3:
            if (time.monotonic() - began) * 20 > said:
                cluster.api("publish", channel=channel, data=said)
                said += 1
            try:
                found = client.take(0.02)
            except TimeoutError:
                continue
            if not found:
                at.append(time.monotonic() - began)
                client.say("{}")
                client.say("{}", "{}")  # two more than were asked for do no harm
        assert 0.4 <= at[0] <= 1.5, "the first one comes in the second half of the interval"
        for earlier, later in pairwise(at):
            assert 0.7 <= later - earlier <= 1.4
        assert said > 20
        assert "error" in client.ask("rpc", method="still there?")


def test_04_no_pong(cluster: Cluster) -> None:
    with cluster.json(STRICT_SHARD, answers_pings=False) as client:
        client.connected(token=token(cluster.fresh("u")))
        assert client.take() == {}
        began = time.monotonic()
        assert client.ended() == (3012, "no pong")
        assert 0.2 <= time.monotonic() - began <= 1.0
    with cluster.protobuf(STRICT_SHARD) as other:
        other.say(pb.Command(id=1, connect=pb.ConnectRequest(token=token(cluster.fresh("u")))))
        assert other.ended() == (3012, "no pong")
        assert other.frames[1:] == [b"\x00"]


def test_04_other_traffic_is_no_pong(cluster: Cluster) -> None:
    with cluster.json(STRICT_SHARD, answers_pings=False) as client:
        client.connected(token=token(cluster.fresh("u")))
        while client.take() != {}:
            pass
        with pytest.raises(Gone) as gone:
            while True:
                client.ask("unsubscribe", channel="x")
                time.sleep(0.1)
        assert (gone.value.code, gone.value.reason) == (3012, "no pong")


def test_04_pings_of_websocket_instead(cluster: Cluster) -> None:
    with cluster.json(STRICT_SHARD, "?cf_ws_frame_ping_pong=true", answers_pings=False) as client:
        result = client.connected(token=token(cluster.fresh("u")))
        assert "ping" not in result and "pong" not in result
        with pytest.raises(TimeoutError):
            client.take(1.8)  # the library answers pings of WebSocket by itself
        assert client.ask("unsubscribe", channel="x") == {"unsubscribe": {}}


# --- 5 --------------------------------------------------------------------------------------------------


def error(code: int, message: str, temporary: bool = False) -> dict[str, Any]:
    return {"error": {"code": code, "message": message} | ({"temporary": True} if temporary else {})}


def test_05_errors(cluster: Cluster) -> None:
    denied, wrong = error(103, "permission denied"), error(107, "bad request")
    missing, unavailable = error(102, "unknown channel"), error(108, "not available")
    with cluster.user("alice") as client:
        ask = client.ask
        # In the order of the table.
        assert ask("subscribe", channel="x" * 256) == wrong
        assert ask("subscribe", channel="é" * 128) == wrong
        assert ask("subscribe", channel="x" * 255) == {"subscribe": {}}
        assert ask("subscribe", channel="x" * 255) == error(105, "already subscribed")
        assert ask("subscribe", channel="nowhere:x") == missing
        assert ask("subscribe", channel="é") == wrong
        assert ask("subscribe", channel="strict:ABC") == wrong
        assert ask("subscribe", channel="strict:abc") == {"subscribe": {}}
        assert ask("subscribe", channel="$x") == denied
        assert ask("subscribe", channel="$nowhere:x") == missing
        assert ask("subscribe", channel="dialog:x#alice,bob") == {"subscribe": {}}
        assert ask("subscribe", channel="dialog:x#bob") == denied
        assert ask("subscribe", channel="x#alice") == denied
        assert ask("subscribe", channel="closed:x") == denied
        for method in ("publish", "presence", "presence_stats", "history"):
            fields = {"data": 1} if method == "publish" else {}
            assert ask(method, channel="nowhere:x", **fields) == missing
            assert ask(method, channel="closed:x", **fields) == denied
        for method in ("presence", "presence_stats", "history"):
            assert ask(method, channel="x") == unavailable
        assert ask("publish", channel="nowhere:x") == wrong, "no data comes before no namespace"
        assert ask("publish", channel="strict:abc", data=[1]) == wrong
        assert ask("publish", channel="strict:abc", data={}) == {"publish": {}}
        assert ask("history", channel="kept:x", reverse=True, since={"offset": 0, "epoch": ""}) == wrong
        assert ask("history", channel="kept:x", since={"offset": 0, "epoch": "other"}) == error(
            112, "unrecoverable position"
        )
        assert ask("rpc", method="anything", data={}) == unavailable
        assert ask("sub_refresh", channel="never", token=token("alice", channel="never")) == denied
        assert ask("sub_refresh", channel="x" * 255) == wrong
        assert ask("subscribe", channel="y", tf={"key": "a", "cmp": "eq", "val": "1"}) == wrong
        # Whoever subscribed with a token may what subscribers may.
        assert "subscribe" in ask("subscribe", channel="closed:x", token=token("alice", channel="closed:x"))
        assert ask("publish", channel="closed:x", data=1) == {"publish": {}}
        assert ask("presence_stats", channel="closed:x")["presence_stats"]["num_clients"] == 1
        assert ask("history", channel="closed:x")["history"]["offset"] == 1


def test_05_limits_of_a_connection(cluster: Cluster) -> None:
    user = cluster.fresh("u")
    with cluster.json(STRICT_SHARD) as client:
        client.connected(token=token(user))  # and in the channel of its own
        names = [cluster.fresh("room") for _ in range(3)]
        client.say(*({"id": n, "subscribe": {"channel": name}} for n, name in enumerate(names, 1)))
        assert [client.reply(n) for n in (1, 2, 3)] == [{"subscribe": {}}] * 2 + [
            error(106, "limit exceeded")
        ]
        time.sleep(1.0)  # for the commands of a second to be there again
        client.say(*({"id": 10 + n, "unsubscribe": {"channel": "x"}} for n in range(25)))
        replies = [client.reply(10 + n) for n in range(25)]
        assert replies[:20] == [{"unsubscribe": {}}] * 20
        assert replies[-1] == error(111, "too many requests", temporary=True)
        client.say(
            *({"id": 100 + n, "unsubscribe": {"channel": "x"}} for n in range(3)), {"send": {"data": 1}}
        )
        assert client.ended() == (3013, "too many requests")
    with cluster.json(STRICT_SHARD) as client:
        client.connected(token=token(user))
        client.say(*({"id": n, "rpc": {}} for n in range(1, 41)))
        assert client.ended() == (3509, "too many errors")
        assert sum(str(frame).count('"error"') for frame in client.frames) == 31


def test_05_disconnects_at_connect(cluster: Cluster) -> None:
    now = int(time.time())
    for shard, fields, expected in (
        (0, {}, (3501, "bad request: no credentials")),
        (0, {"token": ""}, (3501, "bad request: no credentials")),
        (0, {"token": "nonsense"}, (3500, "invalid token")),
        (0, {"token": token("u", channel="x")}, (3500, "invalid token")),
        (0, {"token": token("u", channels=[f"c{n}" for n in range(129)])}, (3505, "channel limit")),
        (0, {"token": token("u"), "subs": {"nowhere:x": {}}}, BAD_REQUEST),
        (STRICT_SHARD, {"token": token("", iat=now)}, (3507, "permission denied")),
        (STRICT_SHARD, {"token": token("u3505", channels=["a", "b", "c"])}, (3505, "channel limit")),
    ):
        with cluster.json(shard) as client:
            client.say({"id": 1, "connect": fields}, {"id": 2, "subscribe": {"channel": "x"}})
            assert client.ended() == expected, fields
            assert client.frames == []
            assert len(expected[1].encode()) <= 32
    with cluster.json(STRICT_SHARD) as client:
        assert client.ended() == (3502, "stale")
    user = cluster.fresh("u")
    clients = [cluster.json(STRICT_SHARD) for _ in range(3)]
    for client in clients[:2]:
        client.connected(token=token(user))
    clients[2].say({"id": 1, "connect": {"token": token(user)}})
    assert clients[2].ended() == (3504, "connection limit")
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ({"id": 7, "subscribe": {}}, BAD_REQUEST),
        ({"id": 7, "unsubscribe": {}}, BAD_REQUEST),
        ({"id": 7, "publish": {"data": 1}}, BAD_REQUEST),
        ({"id": 7, "presence": {}}, BAD_REQUEST),
        ({"id": 7, "presence_stats": {}}, BAD_REQUEST),
        ({"id": 7, "history": {}}, BAD_REQUEST),
        ({"id": 7, "refresh": {}}, BAD_REQUEST),
        ({"id": 7, "ping": {}}, BAD_REQUEST),
        ({"id": 7, "subscribe": {"channel": "x", "delta": "xdelta"}}, BAD_REQUEST),
        ({"id": 7, "sub_refresh": {"channel": "plain", "token": "GOOD"}}, BAD_REQUEST),
        ({"id": 7, "sub_refresh": {"channel": "plain", "token": "x"}}, BAD_REQUEST),
        ({"id": 7, "sub_refresh": {"channel": "paid", "token": "GOOD"}}, (3500, "invalid token")),
        ({"id": 7, "sub_refresh": {"channel": "paid", "token": "THEIRS"}}, (3500, "invalid token")),
        ({"id": 7, "sub_refresh": {"channel": "paid", "token": "x"}}, (3500, "invalid token")),
        ({"id": 7, "sub_refresh": {"channel": "paid", "token": "OLD"}}, (3006, "subscription expired")),
        ({"id": 7, "refresh": {"token": "x"}}, (3500, "invalid token")),
        ({"id": 7, "refresh": {"token": "BOB"}}, (3500, "invalid token")),
        ({"id": 7, "refresh": {"token": "EXPIRED"}}, (3005, "connection expired")),
        ({"id": 7, "refresh": {"token": "MORE"}}, (3010, "insufficient state")),
        ({"id": 7, "subscribe": {"channel": "x", "token": "OTHER"}}, (3500, "invalid token")),
        ({"send": {"data": 1}}, (3508, "not available")),
    ],
    ids=str,
)
def test_05_disconnects_of_a_connected_client(
    cluster: Cluster, command: dict[str, Any], expected: tuple[int, str]
) -> None:
    tokens = {
        "GOOD": token("alice", channel="plain"),
        "OTHER": token("alice", channel="other"),
        "THEIRS": token("bob", channel="paid"),
        "OLD": token("alice", channel="paid", exp=1),
        "BOB": token("bob"),
        "EXPIRED": token("alice", exp=1),
        "MORE": token("alice", channels=["news"]),
    }
    for fields in command.values():
        if isinstance(fields, dict) and fields.get("token") in tokens:
            fields["token"] = tokens[fields["token"]]
    with cluster.user("alice") as client:
        client.ask("subscribe", channel="plain")
        paid = token("alice", channel="paid", exp=int(time.time()) + 60)
        assert client.ask("subscribe", channel="paid", token=paid)["subscribe"]["expires"] is True
        client.say(command)
        assert client.ended() == expected


def test_05_what_the_backend_says(cluster: Cluster) -> None:
    for given, expected in (
        ({}, (3503, "force disconnect")),
        ({"disconnect": {"code": 3011, "reason": "force reconnect"}}, (3011, "force reconnect")),
        ({"disconnect": {"code": 4321, "reason": "tournament over"}}, (4321, "tournament over")),
    ):
        user = cluster.fresh("u")
        with cluster.user(user, 1) as client:
            assert cluster.api("disconnect", user=user, **given) == {}
            assert client.ended() == expected


def test_05_a_shard_that_stops_says_so(frail: Cluster) -> None:
    with frail.user("u", 0) as client, frail.user("u", 1) as other:
        frail.nodes[0].process.terminate()
        assert client.ended() == (3001, "shutdown")
        assert frail.nodes[0].process.wait(20) == 0
        assert other.ask("subscribe", channel="x") == {"subscribe": {}}
