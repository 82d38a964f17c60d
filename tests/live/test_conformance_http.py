"""What the protocol asks over HTTP: the server API, and clients without WebSocket (items 10 and 12)."""

from __future__ import annotations

import base64
import http.client
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.live.cluster import API_KEY, STRICT_SHARD, Cluster, token
from tests.live.raw import SECONDS, HttpStream, Object, delimited, pb, replies_in, requested

pytestmark = pytest.mark.live


def failed(code: int, message: str) -> Object:
    return {"error": {"code": code, "message": message}}


UNKNOWN, BAD, UNAVAILABLE = (
    failed(102, "unknown channel"),
    failed(107, "bad request"),
    failed(108, "not available"),
)


# --- 10 -------------------------------------------------------------------------------------------------


def test_10_who_may_call(cluster: Cluster) -> None:
    port = cluster.ports[0]
    body = json.dumps({"channel": "x", "data": 1})
    ways: list[tuple[str, dict[str, str]]] = [
        ("", {"X-API-Key": API_KEY}),
        ("", {"Authorization": f"apikey {API_KEY}", "Content-Type": "text/nonsense"}),
        (f"?api_key={API_KEY}", {}),
    ]
    for query, headers in ways:
        answer = requested(port, "POST", f"/api/publish{query}", body, headers)
        assert (answer.status, json.loads(answer.body)) == (200, {"result": {}})
    wrong: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        ("", {"X-API-Key": API_KEY + "x"}),
        ("", {"X-API-Key": ""}),
        ("", {"Authorization": f"Bearer {API_KEY}"}),
        ("?api_key=", {}),
    ]
    for query, headers in wrong:
        assert requested(port, "POST", f"/api/publish{query}", body, headers).status == 401
        assert requested(port, "POST", f"/api{query}", body, headers).status == 401
    key = {"X-API-Key": API_KEY}
    assert requested(port, "GET", "/api/info", headers=key).status == 405
    for text in ("{", "nonsense", "{} {}", '{"channel":"x","data":}'):
        answer = requested(port, "POST", "/api/publish", text, key)
        assert answer.status == 400 and answer.headers["content-type"].startswith("text/plain")
    for path in ("/api/fly", "/api/publish/", "/api/batch/x", "/apis"):
        assert requested(port, "POST", path, body, key).status == 404


def test_10_results_and_errors(cluster: Cluster) -> None:
    room, kept, call = cluster.fresh("room"), cluster.fresh("kept:"), cluster.call
    assert call("publish", channel=room, data=None) == {"result": {}}
    first = call("publish", channel=kept, data={"n": 1})["result"]
    assert first == {"offset": 1, "epoch": first["epoch"]}
    assert call("publish", channel=kept, data=2, skip_history=True) == {"result": {}}
    # Permissions of clients do not matter here.
    assert "offset" in call("publish", channel="closed:x", data=1)["result"]
    assert call("broadcast", channels=[room, "nowhere:b", kept], data=1) == {
        "result": {"responses": [{"result": {}}, UNKNOWN, {"result": {"offset": 2, "epoch": first["epoch"]}}]}
    }
    for method, params, error in (
        ("publish", {"channel": "nowhere:x", "data": 1}, UNKNOWN),
        ("publish", {"channel": "", "data": 1}, BAD),
        ("publish", {"channel": room}, BAD),
        ("publish", {"channel": room, "b64data": "%"}, BAD),
        ("broadcast", {"channels": [], "data": 1}, BAD),
        ("subscribe", {"user": "u", "channel": ""}, BAD),
        ("subscribe", {"user": "u", "channel": "nowhere:x"}, UNKNOWN),
        ("presence", {"channel": room}, UNAVAILABLE),
        ("presence_stats", {"channel": "nowhere:x"}, UNKNOWN),
        ("history", {"channel": room}, UNAVAILABLE),
        (
            "history",
            {"channel": kept, "since": {"offset": 0, "epoch": "x"}},
            failed(112, "unrecoverable position"),
        ),
        ("history", {"channel": kept, "since": {"offset": 0}, "reverse": True}, BAD),
        ("history_remove", {"channel": room}, UNAVAILABLE),
        ("rpc", {"method": "anything"}, failed(104, "method not found")),
    ):
        assert call(method, **params) == error, (method, params)
    for method in ("unsubscribe", "disconnect", "refresh"):
        assert call(method, user="nobody", **({"channel": room} if method == "unsubscribe" else {})) == {
            "result": {}
        }


def test_10_what_is_published(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    with cluster.user() as client, cluster.protobuf(1) as other:
        other.ask(connect=pb.ConnectRequest(token=token("p")))
        other.ask(subscribe=pb.SubscribeRequest(channel=channel))
        epoch = client.ask("subscribe", channel=channel)["subscribe"]["epoch"]
        cluster.api("publish", channel=channel, data={"a": 1}, tags={"k": "v"})
        assert client.push("pub", channel) == {
            "data": {"a": 1},
            "offset": 1,
            "epoch": epoch,
            "tags": {"k": "v"},
        }
        assert dict(other.push("pub", channel).tags) == {"k": "v"}
        text = base64.b64encode(b'{"b":2}').decode()
        cluster.api("publish", channel=channel, b64data=text)
        assert client.push("pub", channel) == {"data": {"b": 2}, "offset": 2}
        assert other.push("pub", channel).data == b'{"b":2}'
        # Once for one key, and only what is newer than the last version.
        one = cluster.api("publish", 0, channel=channel, data=3, idempotency_key="k")
        assert cluster.api("publish", 1, channel=channel, data=3, idempotency_key="k") == one
        assert one["offset"] == 3
        for version, offset in ((5, 4), (5, 4), (4, 4), (6, 5)):
            position = cluster.api(
                "publish", channel=channel, data=version, version=version, version_epoch="e"
            )
            assert position["offset"] == offset
        assert client.heard(channel, 3) == [3, 5, 6]
        # Bytes that are no JSON reach those who can read them.
        cluster.api("publish", channel=channel, b64data=base64.b64encode(b"\xff\x00").decode())
        cluster.api("publish", channel=channel, data="end")
        assert [other.push("pub", channel).data for _ in range(5)][-2:] == [b"\xff\x00", b'"end"']
        assert client.push("pub", channel) == {"data": "end", "offset": 7}
        history = cluster.api("history", 1, channel=channel, limit=2)
        assert history == {
            "publications": [{"data": 3, "offset": 3}, {"data": 5, "offset": 4}],
            "epoch": epoch,
            "offset": 7,
        }
        assert cluster.api("history", channel=channel) == {"publications": [], "epoch": epoch, "offset": 7}
        assert cluster.api("history_remove", channel=channel) == {}
        assert cluster.api("history", channel=channel, limit=-1)["publications"] == []


def test_10_what_the_cluster_tells(cluster: Cluster) -> None:
    name = cluster.fresh("live:tell")
    with cluster.user("alice", 0, info={"n": 1}) as client, cluster.user("bob", 1) as other:
        for each in (client, other):
            each.ask("subscribe", channel=name)
        assert cluster.api("presence", 1, channel=name) == {
            "presence": {
                client.client: {"user": "alice", "client": client.client, "conn_info": {"n": 1}},
                other.client: {"user": "bob", "client": other.client},
            }
        }
        assert cluster.api("presence_stats", 0, channel=name) == {"num_clients": 2, "num_users": 2}
        assert cluster.api("channels", 0, pattern=f"{name[:-1]}*") == {"channels": {name: {"num_clients": 2}}}
        assert name in cluster.api("channels", 1)["channels"]
    assert cluster.api("channels", 0, pattern="live:never*") == {"channels": {}}
    assert cluster.api("presence", channel=cluster.fresh("live:")) == {"presence": {}}
    nodes = cluster.api("info")["nodes"]
    assert len(nodes) == 3 and len({node["uid"] for node in nodes}) == 3
    for node in nodes:
        counters = ("num_clients", "num_users", "num_subs", "num_channels", "uptime")
        assert all(isinstance(node[each], int) for each in counters) and node["name"] and node["version"]


def test_10_batch_and_the_older_endpoint(cluster: Cluster) -> None:
    channel = cluster.fresh("kept:")
    commands = [
        {"publish": {"channel": channel, "data": 1}},
        {"presence": {"channel": "x"}},
        {"history": {"channel": channel, "limit": 1}},
        {"fly": {}},
    ]
    for parallel in (False, True):
        found = cluster.call("batch", commands=commands, parallel=parallel)
        assert set(found) == {"replies"}
        published, presence, history, fly = found["replies"]
        assert published["publish"]["epoch"] == history["history"]["epoch"]
        assert presence == UNAVAILABLE and fly["error"]["code"] == 104
    assert cluster.call("batch", commands=[]) == {"replies": []}
    one = json.dumps({"method": "publish", "params": {"channel": "x", "data": 1}})
    answer = cluster.post("/api", one)
    assert (answer.status, json.loads(answer.body)) == (200, {"result": {}})
    two = json.dumps({"method": "presence", "params": {"channel": "x"}})
    answer = cluster.post("/api", f"{one}\n{two}\n")
    assert [json.loads(line) for line in answer.body.splitlines()] == [{"result": {}}, UNAVAILABLE]
    assert cluster.post("/api", "nonsense").status == 400


@pytest.mark.parametrize(("shard", "header"), [(0, "transport"), (STRICT_SHARD, None)])
def test_10_errors_as_statuses(cluster: Cluster, shard: int, header: str | None) -> None:
    headers = {"X-Centrifugo-Error-Mode": header} if header else {}
    for method, params, status, error in (
        ("publish", {"channel": "x"}, 400, BAD),
        ("presence", {"channel": "x"}, 400, UNAVAILABLE),
        ("publish", {"channel": "nowhere:x", "data": 1}, 404, UNKNOWN),
        ("rpc", {"method": "x"}, 404, failed(104, "method not found")),
        (
            "history",
            {"channel": "kept:x", "since": {"offset": 0, "epoch": "x"}},
            416,
            failed(112, "unrecoverable position"),
        ),
    ):
        answer = cluster.post(f"/api/{method}", json.dumps(params), shard, **headers)
        assert (answer.status, json.loads(answer.body)) == (status, error["error"])
    answer = cluster.post("/api/publish", '{"channel":"x","data":1}', shard, **headers)
    assert (answer.status, json.loads(answer.body)) == (200, {"result": {}})


# --- 12 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["http_stream", "sse"])
@pytest.mark.parametrize("holder", [0, 1])
def test_12_a_stream_of_one_shard_and_requests_to_the_other(
    cluster: Cluster, transport: str, holder: int
) -> None:
    channel, user = cluster.fresh("live:"), cluster.fresh("u")
    other = cluster.ports[1 - holder]
    stream = HttpStream(cluster.ports[holder], transport, {"token": token(user), "name": "js"})
    for name, value in (
        ("x-accel-buffering", "no"),
        ("cache-control", "private, no-cache, no-store, must-revalidate, max-age=0"),
        ("pragma", "no-cache"),
        ("expire", "0"),
    ):
        assert stream.headers[name] == value
    if transport == "sse":
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.start == b"\r\n"
    result = stream.connected()
    assert result["session"] and result["node"] and result["session"] != result["client"]
    assert (result["ping"], result["pong"]) == (25, True)
    assert stream.ask(other, "subscribe", channel=channel) == {"subscribe": {}}
    join = {"push": {"channel": channel, "join": {"info": {"user": user, "client": result["client"]}}}}
    assert stream.take() == join
    cluster.api("publish", 1 - holder, channel=channel, data={"text": "a\nb\r"})
    assert stream.take() == {"push": {"channel": channel, "pub": {"data": {"text": "a\nb\r"}}}}
    # Several commands in one request; a pong; a session that is gone; nodes that never were.
    assert (
        stream.said(
            other, {"id": 50, "presence_stats": {"channel": channel}}, {}, {"id": 51, "rpc": {}}
        ).status
        == 204
    )
    replies = {reply["id"]: reply for reply in (stream.take(), stream.take()) if reply}
    assert replies[50]["presence_stats"] == {"num_clients": 1, "num_users": 1}
    assert replies[51]["error"]["code"] == 108
    body = {"session": result["session"], "node": result["node"], "data": "{}"}
    for change, status in (
        ({"session": "another"}, 204),
        ({"node": "another"}, 404),
        ({"data": 7}, 400),
        ({"data": "x" * 65536}, 413),
    ):
        assert requested(other, "POST", "/emulation", json.dumps(body | change)).status == status, change
    assert requested(other, "POST", "/emulation", "nonsense").status == 400
    # What ends it is told as the last message.
    cluster.api("disconnect", 1 - holder, user=user)
    ended = stream.take()
    while ended is not None and "disconnect" not in ended["push"]:
        ended = stream.take()
    assert ended == {"push": {"disconnect": {"code": 3503, "reason": "force disconnect"}}}
    assert stream.take() is None
    assert stream.said(other, {"id": 60, "rpc": {}}).status == 204
    stream.close()


@pytest.mark.parametrize("transport", ["http_stream", "sse"])
def test_12_several_commands_at_once_and_what_is_refused(cluster: Cluster, transport: str) -> None:
    stream = HttpStream(cluster.ports[0], transport, {})
    assert stream.take() == {"push": {"disconnect": {"code": 3501, "reason": "bad request: no credentials"}}}
    assert stream.take() is None
    stream.close()
    stream = HttpStream(cluster.ports[0], transport, {"token": token("u", exp=1)})
    assert stream.take() == {"id": 1, **failed(109, "token expired")}
    stream.close()
    # A client that does not answer pings.
    stream = HttpStream(cluster.ports[STRICT_SHARD], transport, {"token": token(cluster.fresh("u"))})
    stream.connected()
    assert stream.take() == {"push": {"disconnect": {"code": 3012, "reason": "no pong"}}}
    stream.close()
    port, path = cluster.ports[0], f"/connection/{transport}"
    lines = "\n".join(
        json.dumps(each)
        for each in ({"id": 1, "connect": {"token": token("u")}}, {"id": 2, "subscribe": {"channel": "x"}})
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    if transport == "sse":
        connection.request("GET", f"{path}?cf_connect={quote(lines)}")
    else:
        connection.request("POST", path, lines)
    answer = connection.getresponse()
    text = b""
    while b"subscribe" not in text:
        text += answer.readline()
    connected, subscribed = text.index(b'"connect"'), text.index(b'{"id":2,"subscribe":{}}')
    assert connected < subscribed
    answer.close()
    connection.close()
    assert requested(port, "GET" if transport == "sse" else "POST", path).status == 400
    assert requested(port, "PUT", path).status == 405
    assert requested(port, "POST", path, "x" * 65537).status == 413
    origin = "https://game.example.com"
    preflight = requested(port, "OPTIONS", path, headers={"Origin": origin})
    assert preflight.status == 204
    assert preflight.headers["access-control-max-age"] == "300"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert requested(port, "POST", path, "{}", {"Origin": "https://example.org"}).status == 403
    assert requested(port, "POST", "/emulation", "{}", {"Origin": "https://example.org"}).status == 403
    assert requested(port, "GET", "/emulation").status == 405


def test_12_protobuf_streams(cluster: Cluster) -> None:
    channel = cluster.fresh("room")
    connect = pb.Command(id=1, connect=pb.ConnectRequest(token=token("u")))
    connection = http.client.HTTPConnection("127.0.0.1", cluster.ports[0], timeout=SECONDS)
    octets = {"Content-Type": "application/octet-stream"}
    connection.request("POST", "/connection/http_stream", delimited(connect), octets)
    answer = connection.getresponse()
    replies: list[Any] = []
    rest = b""

    def take() -> Any:
        nonlocal rest
        while not replies:
            rest += answer.read1()
            if rest and len(rest) > rest[0] and rest[0] < 0x80:  # short messages, one at a time
                replies.extend(replies_in(rest[: rest[0] + 1]))
                rest = rest[rest[0] + 1 :]
            elif rest and rest[0] >= 0x80 and len(rest) >= (rest[0] & 0x7F) + (rest[1] << 7) + 2:
                size = (rest[0] & 0x7F) + (rest[1] << 7) + 2
                replies.extend(replies_in(rest[:size]))
                rest = rest[size:]
        return replies.pop(0)

    result = take().connect
    assert result.session and result.node
    commands = delimited(
        pb.Command(id=2, subscribe=pb.SubscribeRequest(channel=channel)),
        pb.Command(id=3, publish=pb.PublishRequest(channel=channel, data=b"\x00\xff")),
    )
    asked = pb.EmulationRequest(node=result.node, session=result.session, data=commands)
    for port, body, status in (
        (cluster.ports[1], asked.SerializeToString(), 204),
        (cluster.ports[1], b"\xff\xff", 400),
    ):
        assert requested(port, "POST", "/emulation", body, octets).status == status
    assert take().id == 2
    found = [take(), take()]
    assert next(each for each in found if each.id == 0).push.pub.data == b"\x00\xff"
    answer.close()
    connection.close()


def test_12_a_client_that_leaves_its_stream_is_gone(cluster: Cluster) -> None:
    channel = cluster.fresh("live:")
    stream = HttpStream(cluster.ports[0], "sse", {"token": token("u")})
    stream.connected()
    stream.ask(cluster.ports[1], "subscribe", channel=channel)
    assert cluster.present(channel) == (1, 1)
    stream.close()
    deadline = time.monotonic() + 5
    while cluster.present(channel) != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
