"""The server API over HTTP: in memory through Twisted's channel; over sockets, with the official client."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import cent
import pytest
from cent.exceptions import CentApiResponseError, CentTransportError, CentUnauthorizedError
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from spread.hub.api import ClientInfo
from spread.node import codes
from spread.node.api import MAX_BODY_BYTES, api_paths, api_resource, http
from spread.node.settings import HttpApiSettings
from spread.node.web.bodies import BoundedSite
from spread.node.web.site import BoundedFactory, quiet_site
from tests.node.fake_api import Cluster, Shard

KEY = "correct horse"


def api_site(shard: Shard, clock: Any, settings: HttpApiSettings) -> Site:
    resource = api_resource(settings, shard.methods)
    return quiet_site(clock, {path: resource for path in api_paths(settings)})


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


class Connection:
    """A connection to the API, in memory; it is kept alive."""

    def __init__(self, cluster: Cluster, **settings: Any) -> None:
        self.cluster = cluster
        self.settings = HttpApiSettings(**{"key": KEY, **settings})
        self.site = api_site(cluster.first, cluster.clock, self.settings)
        self.open()

    def open(self) -> None:
        self.protocol: Any = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def send(self, path: str, body: bytes = b"", headers: str = "", method: str = "POST") -> None:
        if not headers:
            headers = f"X-API-Key: {KEY}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.protocol.dataReceived(head.encode() + body)

    def answers(self) -> list[Answer]:
        """All that have come since the last time."""
        self.cluster.clock.advance(0.1)
        rest, found = self.transport.value(), []
        self.transport.clear()
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers["content-length"])
            found.append(Answer(int(first.split()[1]), headers, rest[:length]))
            rest = rest[length:]
        return found

    def post(self, path: str, body: Any = b"", headers: str = "", method: str = "POST") -> Answer:
        self.send(path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers, method)
        [answer] = self.answers()
        return answer

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


# --- who may -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/info", f"X-API-Key: {KEY}", 200),
        ("/api/info", f"x-api-key: {KEY}", 200),
        ("/api/info", f"Authorization: apikey {KEY}", 200),
        ("/api/info", f"Authorization: ApiKey  {KEY}", 200),
        ("/api/info?api_key=correct%20horse", "A: b", 200),
        ("/api/info?api_key=wrong&api_key=correct+horse", "X-API-Key: wrong", 200),
        ("/api/info", "A: b", 401),
        ("/api/info", "X-API-Key:", 401),
        ("/api/info", f"X-API-Key: {KEY}e", 401),
        ("/api/info", "X-API-Key: \xff\xfe", 401),
        ("/api/info", f"Authorization: Bearer {KEY}", 401),
        ("/api/info", f"Authorization: {KEY}", 401),
        ("/api/info?api_key=", "A: b", 401),
        ("/api", "A: b", 401),
        ("/api/publish", "A: b", 401),
    ],
)
def test_keys(cluster: Cluster, path: str, headers: str, status: int) -> None:
    answer = Connection(cluster).post(path, headers=headers + "\r\n")
    assert answer.status == status
    assert cluster.first.counters.api_errors[401] == (status == 401)
    if status == 401:
        assert answer.headers["content-type"].startswith("text/plain")
        assert KEY.encode() not in answer.body


def test_without_a_key_nobody_may_and_the_log_says_so_once(cluster: Cluster) -> None:
    connection = Connection(cluster, key="")
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        for headers in ("X-API-Key:\r\n", "X-API-Key: x\r\n", "Authorization: apikey\r\n"):
            assert connection.post("/api/info?api_key=", headers=headers).status == 401
    finally:
        globalLogPublisher.removeObserver(events.append)
    [event] = events
    assert event["log_level"].name == "warn" and "http_api.key" in event["log_format"]


def test_insecure(cluster: Cluster) -> None:
    assert Connection(cluster, key="", insecure=True).post("/api/info", headers="A: b\r\n").status == 200


# --- what is a call ------------------------------------------------------------------------------------


def test_results_and_errors(cluster: Cluster) -> None:
    connection = Connection(cluster)
    answer = connection.post("/api/publish", {"channel": "a", "data": {"t": "hi"}})
    assert (answer.status, answer.body) == (200, b'{"result":{}}')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    failed = connection.post("/api/publish", {"channel": "nope:1", "data": {}})
    assert (failed.status, failed.json) == (200, {"error": {"code": 102, "message": "unknown channel"}})
    cluster.exchange.cut()
    away = connection.post("/api/history", {"channel": "room:1"})
    assert (away.status, away.json) == (200, {"error": {"code": 100, "message": "internal server error"}})


def test_content_type_does_not_matter(cluster: Cluster) -> None:
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "?"):
        headers = f"X-API-Key: {KEY}\r\nContent-Type: {kind}\r\n"
        answer = Connection(cluster).post("/api/publish", {"channel": "a", "data": "x=y&z"}, headers)
        assert (answer.status, answer.json) == (200, {"result": {}})


def test_a_batch_is_not_wrapped(cluster: Cluster) -> None:
    given = {"commands": [{"publish": {"channel": "a", "data": 1}}, {"presence": {"channel": "a"}}]}
    expected = {"replies": [{"publish": {}}, {"error": {"code": 108, "message": "not available"}}]}
    assert Connection(cluster).post("/api/batch", given).json == expected
    assert Connection(cluster).post("/api", {"method": "batch", "params": given}).json == expected
    assert Connection(cluster).post("/api/batch", 5).json == {
        "error": {"code": 107, "message": "bad request"}
    }


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("publish", {}), 107, 400),
        (("presence", {"channel": "a"}), 108, 400),
        (("batch", {"commands": [{}] * 1001}), 106, 400),
        (("publish", {"channel": "nope:1", "data": 1}), 102, 404),
        (("rpc", {"method": "x"}), 104, 404),
        (("history", {"channel": "room:1", "since": {"offset": 1, "epoch": "x"}}), 112, 416),
        (("cut", {}), 100, 500),
    ],
)
def test_transport_errors(cluster: Cluster, arguments: tuple[str, Any], code: int, status: int) -> None:
    method, given = arguments
    if method == "cut":
        cluster.exchange.cut()
        method = "info"
    asking = Connection(cluster), f"X-API-Key: {KEY}\r\nX-Centrifugo-Error-Mode: transport\r\n"
    setting = Connection(cluster, error_mode="transport"), ""
    for connection, headers in (asking, setting):
        for path, body in ((f"/api/{method}", given), ("/api", {"method": method, "params": given})):
            answer = connection.post(path, body, headers)
            assert (answer.status, answer.json) == (
                status,
                {"code": code, "message": codes.ERRORS[code].message},
            )
    plain = f"X-API-Key: {KEY}\r\nX-Centrifugo-Error-Mode: other\r\n"
    assert setting[0].post(f"/api/{method}", given, plain).json["error"]["code"] == code
    assert setting[0].post("/api/broadcast", {"channels": ["nope:1"], "data": 1}).status == 200


def test_the_single_endpoint(cluster: Cluster) -> None:
    connection = Connection(cluster)
    one = {"method": "publish", "params": {"channel": "a", "data": 1}}
    assert connection.post("/api", one).body == b'{"result":{}}'
    assert connection.post("/api", json.dumps(one, indent=2).encode()).body == b'{"result":{}}'
    lines = [one, {"method": "info"}, {"method": "explode"}, {}, 5, {**one, "params": None}]
    body = b"\n".join(json.dumps(line).encode() for line in lines) + b"\r\n\n"
    answer = connection.post("/api", body, f"X-API-Key: {KEY}\r\nX-Centrifugo-Error-Mode: other\r\n")
    first, info, *errors = map(json.loads, answer.body.split(b"\n"))
    assert first == {"result": {}}
    assert len(info["result"]["nodes"]) == 2
    assert [error["error"]["code"] for error in errors] == [104, 104, 104, 107]


def test_what_is_written_in_lines_is_done_in_order(cluster: Cluster) -> None:
    lines = [{"method": "publish", "params": {"channel": "room:1", "data": n}} for n in range(20)]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    answer = Connection(cluster).post("/api", body)
    assert [json.loads(line)["result"]["offset"] for line in answer.body.split(b"\n")] == list(range(1, 21))


@pytest.mark.parametrize("path", ["/api/publish", "/api/info", "/api/batch", "/api"])
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"no",
        b'{"channel":"a","data":1}}',
        b'{"channel":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a":01}',
        b'{"data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":1}\n{"a"',
        b"\x00",
    ],
    ids=range(9),
)
def test_what_is_no_json(cluster: Cluster, path: str, body: bytes) -> None:
    answer = Connection(cluster).post(path, body)
    assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert cluster.first.counters.api_errors[400] == 1


def test_numbers_that_are_too_large(cluster: Cluster) -> None:
    connection = Connection(cluster)
    for number in (b"1e999999", b"-1e400", b"9" * 10_000, b"18446744073709551616", b"0." + b"1" * 5000):
        answer = connection.post("/api/publish", b'{"channel":"a","data":1,"version":%b}' % number)
        assert (answer.status, answer.json["error"]["code"]) in ((200, 107),)
        # As data they are the publisher's own business.
        assert connection.post("/api/publish", b'{"channel":"a","data":%b}' % number).json == {"result": {}}


def test_no_body_is_no_parameters(cluster: Cluster) -> None:
    connection = Connection(cluster)
    assert len(connection.post("/api/info").json["result"]["nodes"]) == 2
    assert connection.post("/api/publish", b" \n").json["error"]["code"] == 107
    assert connection.post("/api").status == 400


def test_lines_are_bounded(cluster: Cluster) -> None:
    assert Connection(cluster).post("/api", b"{}\n" * http.LINES_MAX + b"{}").status == 400


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_only_post(cluster: Cluster, method: str) -> None:
    connection = Connection(cluster)
    for path in ("/api", "/api/info"):
        connection.send(path, method=method)
        head = connection.transport.value().partition(b"\r\n\r\n")
        assert head[0].startswith(b"HTTP/1.1 405 ") and b"allow: post" in head[0].lower()
        assert (head[2] == b"") == (method == "HEAD")
        connection.transport.clear()


def test_paths(cluster: Cluster) -> None:
    connection = Connection(cluster)
    connection.site = BoundedSite(
        api_resource(connection.settings, cluster.first.methods), cluster.clock, 60, {}
    )
    connection.open()
    assert connection.post("/api/info").status == 200
    for path in ("/", "/api/", "/api/explode", "/api/Publish", "/api/publish/", "/api/map_publish", "/apix"):
        assert connection.post(path).status == 404


@pytest.mark.parametrize("prefix", ["/server/api", "/server/api/", "/", ""])
def test_the_prefix_can_be_set(cluster: Cluster, prefix: str) -> None:
    connection = Connection(cluster, handler_prefix=prefix)
    path = prefix.rstrip("/")
    assert connection.post(f"{path}/info").status == 200
    assert connection.post(path or "/", {"method": "info"}).status == 200
    assert connection.post("/api/info").status != 200


# --- limits and connections ----------------------------------------------------------------------------


def test_bodies_are_bounded(cluster: Cluster) -> None:
    connection = Connection(cluster)
    body = b'{"channel":"room:1","data":"%b"}'
    fits = body % (b"x" * (MAX_BODY_BYTES - len(body) + 2))
    assert connection.post("/api/publish", fits).json["result"]["offset"] == 1
    connection.send("/api/publish", fits + b" ")
    assert b" 413 " in connection.transport.value().partition(b"\r\n")[0]
    assert cluster.call("history", {"channel": "room:1"})["offset"] == 1


def test_calls_at_a_time_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CALLS", 2)
    connection = Connection(cluster)
    for _ in range(2):
        connection.send("/api/channels")
        connection.open()
    answer = connection.post("/api/channels")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert cluster.first.counters.api_errors[503] == 1
    assert connection.post("/api/channels").status == 200, "the others have been answered meanwhile"


def test_a_connection_is_kept_and_its_requests_are_answered_in_order(cluster: Cluster) -> None:
    connection = Connection(cluster)
    for number in range(3):
        connection.send("/api/channels", b'{"pattern":"%d"}' % number)
        connection.send("/api/publish", b'{"channel":"room:1","data":1}')
    found = [answer.json["result"] for _ in range(6) for answer in connection.answers()]
    assert [one.get("offset") for one in found] == [None, 1, None, 2, None, 3]
    assert not connection.transport.disconnecting


def test_a_caller_that_goes_away_does_not_stop_its_call(cluster: Cluster) -> None:
    connection = Connection(cluster)
    one = cluster.second.clients.add("ann", "c1")
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    try:
        connection.send("/api/disconnect", b'{"user":"ann"}')
        connection.lose()
        assert [answer.body for answer in connection.answers()] == []
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert (one.heard, events) == ([codes.FORCE_DISCONNECT], [])
    for _ in range(http.MAX_CALLS + 1):
        connection.open()
        connection.send("/api/channels")
        connection.lose()
        cluster.clock.advance(0.1)
    connection.open()
    assert connection.post("/api/channels").status == 200


def test_a_caller_that_goes_away_in_the_middle_of_its_request(cluster: Cluster) -> None:
    connection = Connection(cluster)
    connection.protocol.dataReceived(
        f'POST /api/info HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\n\r\n{{"a"'.encode()
    )
    connection.lose()
    assert connection.answers() == []


# --- the official client -------------------------------------------------------------------------------


class CentTest(TestCase):
    """Every method with ``cent``, over a socket, on a cluster that runs."""

    timeout = 30

    def setUp(self) -> None:
        self.cluster = Cluster(reactor)  # type: ignore[arg-type]
        self.addCleanup(self.cluster.stop)
        self.settings = HttpApiSettings(key=KEY)
        site = api_site(self.cluster.first, reactor, self.settings)
        self.factory = BoundedFactory(site, 100, lambda: None)
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self._closed)
        self.addCleanup(self.port.stopListening)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/api"

    @inlineCallbacks
    def _closed(self) -> Any:
        while self.factory.connections:  # until the test's own deadline
            yield deferLater(reactor, 0.01, lambda: None)

    def ask(self, *requests: Any, key: str = KEY, path: str = "") -> Deferred[list[Any]]:
        """The results of requests, over one connection; or the error, in place of each."""

        def run() -> list[Any]:
            client = cent.Client(self.url + path, key)
            client._session._session.trust_env = False  # no proxy of this machine
            found: list[Any] = []
            try:
                for request in requests:
                    try:
                        found.append(client._send(request))
                    except cent.CentError as error:
                        # Its frames hold the response, which holds the connection.
                        found.append(error.with_traceback(None))
            finally:
                client._session.close()
            return found

        return deferToThread(run)

    @inlineCallbacks
    def test_publications(self) -> Any:
        first, other, wrong, many, top, page, reverse, lost = yield self.ask(
            cent.PublishRequest(channel="room:1", data={"n": 1}, tags={"a": "b"}, idempotency_key="k"),
            cent.PublishRequest(channel="a", data=None, b64data=base64.b64encode(b"\xff").decode()),
            cent.PublishRequest(channel="nope:1", data=1),
            cent.BroadcastRequest(channels=["room:1", "a", "nope:1"], data=[1], skip_history=False),
            cent.HistoryRequest(channel="room:1"),
            cent.HistoryRequest(channel="room:1", limit=1, since=cent.StreamPosition(offset=1)),
            cent.HistoryRequest(channel="room:1", limit=-1, reverse=True),
            cent.HistoryRequest(channel="room:1", since=cent.StreamPosition(offset=1, epoch="no")),
        )
        assert (first.offset, other.offset, other.epoch) == (1, 0, "")
        assert (wrong.code, wrong.message) == (102, "unknown channel")
        kept, plain, unknown = many.responses
        assert (kept.result.offset, plain.result.offset, unknown.error.code) == (2, 0, 102)
        assert (top.offset, top.epoch, top.publications) == (2, first.epoch, [])
        assert [(one.offset, one.data) for one in page.publications] == [(2, [1])]
        assert [one.offset for one in reverse.publications] == [2, 1]
        assert reverse.publications[1].tags == {"a": "b"}
        assert lost.code == 112
        removed, empty = yield self.ask(
            cent.HistoryRemoveRequest(channel="room:1"), cent.HistoryRequest(channel="room:1", limit=-1)
        )
        assert isinstance(removed, cent.HistoryRemoveResult)
        assert (empty.offset, empty.publications) == (2, [])

    @inlineCallbacks
    def test_clients(self) -> Any:
        one = self.cluster.second.clients.add("ann", "c1")
        override = cent.ChannelOptionsOverride(presence=cent.BoolValue(value=True))
        subscribed, found, refreshed, left, none = yield self.ask(
            cent.SubscribeRequest(
                user="ann", channel="room:1", info={"i": 1}, data={"d": 1}, client="c1", override=override
            ),
            cent.ChannelsRequest(pattern="room:*"),
            cent.RefreshRequest(user="ann", expire_at=9),
            cent.UnsubscribeRequest(user="ann", channel="room:1", session="s-c1"),
            cent.ChannelsRequest(),
        )
        assert isinstance(subscribed, cent.SubscribeResult)
        assert isinstance(refreshed, cent.RefreshResult) and isinstance(left, cent.UnsubscribeResult)
        assert found.channels["room:1"].num_clients == 1
        assert none.channels == {}
        assert (one.heard[0].info, one.heard[0].override.presence) == (b'{"i": 1}', True)
        assert one.heard[1] == (False, 9, b"")
        reason = cent.Disconnect(code=4000, reason="bye")
        [gone] = yield self.ask(cent.DisconnectRequest(user="ann", whitelist=["x"], disconnect=reason))
        assert isinstance(gone, cent.DisconnectResult)
        assert one.heard[2] == codes.Disconnect(4000, "bye")

    @inlineCallbacks
    def test_presence_and_info(self) -> Any:
        self.cluster.first.hub.add_presence("room:1", ClientInfo("ann", "c1", b'{"a":1}'), 60)
        presence, stats, off, info = yield self.ask(
            cent.PresenceRequest(channel="room:1"),
            cent.PresenceStatsRequest(channel="room:1"),
            cent.PresenceRequest(channel="a"),
            cent.InfoRequest(),
        )
        assert presence.presence["c1"].conn_info == {"a": 1}
        assert (stats.num_clients, stats.num_users) == (1, 1)
        assert isinstance(off, CentApiResponseError) and off.code == 108
        assert [(node.name, node.uptime) for node in info.nodes] == [("here-0", 7), ("here-1", 7)]

    @inlineCallbacks
    def test_batch(self) -> Any:
        commands = [
            cent.PublishRequest(channel="room:1", data=1),
            cent.ChannelsRequest(pattern="*"),
            cent.HistoryRequest(channel="room:1", limit=1),
        ]
        in_order, parallel = yield self.ask(
            cent.BatchRequest(requests=commands), cent.BatchRequest(requests=commands, parallel=True)
        )
        assert [type(reply).__name__ for reply in in_order.replies] == [
            "PublishResult",
            "ChannelsResult",
            "HistoryResult",
        ]
        assert parallel.replies[0].offset == 2

    @inlineCallbacks
    def test_refusals(self) -> Any:
        [wrong] = yield self.ask(cent.InfoRequest(), key="wrong")
        [missing] = yield self.ask(cent.InfoRequest(), key="")
        [lost] = yield self.ask(cent.InfoRequest(), path="/x")
        [pro] = yield self.ask(cent.GetUserStatusRequest(users=["ann"]))
        assert isinstance(wrong, CentUnauthorizedError) and isinstance(missing, CentUnauthorizedError)
        assert isinstance(lost, CentTransportError) and isinstance(pro, CentTransportError)

    @inlineCallbacks
    def test_the_asynchronous_client(self) -> Any:
        async def calls() -> list[Any]:
            client = cent.AsyncClient(self.url, KEY)
            try:
                request = cent.PublishRequest(channel="room:1", data=1)
                return await asyncio.gather(*(client.publish(request) for _ in range(10)))
            finally:
                await client._session.close()

        found = yield deferToThread(asyncio.run, calls())
        assert sorted(one.offset for one in found) == list(range(1, 11))
