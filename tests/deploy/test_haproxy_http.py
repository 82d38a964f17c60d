"""Clients over HTTP, and backends, through HAProxy with the configuration of ``deploy/`` and real shards."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest

from spread.node.settings import Settings
from tests.deploy.files import ROOT, haproxy_sections
from tests.deploy.proxy import ADDRESSES, HAPROXY, NameServer, Proxy
from tests.hub.certificates import Authority
from tests.hub.servers import Valkey
from tests.live.processes import Node, home, started, until
from tests.live.raw import HttpStream, JsonClient, ProtobufClient, pb, requested

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback network of several addresses"),
]

SECRET = "a-secret-that-only-the-backend-of-the-tests-knows"
KEY = "the-key-of-the-tests"

CONFIG = f"""
[client.token]
hmac_secret_key = "{SECRET}"

[http_api]
key = "{KEY}"

[http_stream]
enabled = true

[sse]
enabled = true

[channel.without_namespace]
history_size = 100
history_ttl = "300s"
force_recovery = true
allow_subscribe_for_client = true
allow_history_for_client = true
"""


def token(user: str = "ann") -> str:
    return jwt.encode({"sub": user}, SECRET, algorithm="HS256")


class Site:
    """Shards on one hub, behind a proxy that finds them by name."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._home = stack.enter_context(home())
        self._config = self._home.parent / "spread.toml"
        self._config.write_text(CONFIG)
        self.hub = stack.enter_context(Valkey())
        self._names = NameServer()
        stack.callback(self._names.close)
        self.nodes: list[Node] = []
        self.text = self.http = self.ops = 0

    def shard(self, *arguments: str) -> Node:
        """One more shard, with the number and the address that are next, and the ports of the first."""
        number = len(self.nodes)
        address = ADDRESSES[number]
        node = started(
            self._stack,
            *("--shard", str(number), "--hub", self.hub.url, "--config", str(self._config)),
            # A shard adds its number to the port.
            *("--http", f"{address}:{self.http}", "--ops", f"{address}:{max(0, self.ops - number)}"),
            *arguments,
            home=self._home,
            text=f"{address}:{self.text}",
        )
        node.wait_ready(1)
        found = re.findall(r"(?:text|http|ops)=\S+:(\d+)", node.ready[0][1])
        if not self.nodes:
            self.text, self.http, self.ops = map(int, found)
        self.nodes.append(node)
        self._names.addresses = list(ADDRESSES[: number + 1])
        return node

    def proxy(self, changes: Mapping[str, str] | None = None, certificate: Path | None = None) -> Proxy:
        """The proxy, once it has found all shards."""
        proxy = Proxy(self._names.port, self.text, self.http, changes, certificate)
        self._stack.callback(proxy.close)
        self.found(proxy)
        return proxy

    def found(self, proxy: Proxy) -> None:
        """Wait until clients come to every shard, as they do to the one with the fewest."""
        until(lambda: proxy.health() == 200, 20, "a shard behind the proxy")
        numbers = range(len(self.nodes))
        there = sum(map(self.clients, numbers))

        def all_got_more() -> bool:
            before = [self.clients(number) for number in numbers]
            with ExitStack() as stack:
                for _ in range(1 + max(before) - min(before) + len(before)):
                    websocket(stack, proxy)
                return all(self.clients(number) > before[number] for number in numbers)

        until(all_got_more, 20, "a client on each shard")
        until(lambda: sum(map(self.clients, numbers)) == there, 20, "the end of those clients")

    def clients(self, number: int) -> int:
        """Clients of a shard, as it counts them."""
        url = f"http://{ADDRESSES[number]}:{self.ops}/metrics"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            found = re.search(rb"^spread_clients (\d+)", answer.read(), re.MULTILINE)
        assert found
        return int(found[1])

    def check_alive(self) -> None:
        for node in self.nodes:
            assert "Traceback" not in node.stderr(), node.stderr()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def site(stack: ExitStack) -> Iterator[Site]:
    site = Site(stack)
    yield site
    site.check_alive()


def websocket(stack: ExitStack, proxy: Proxy, **options: Any) -> JsonClient:
    """A client that is connected; it is gone when the stack ends."""
    client = JsonClient(f"ws://127.0.0.1:{proxy.http_port}", **options)
    stack.callback(client.close)
    client.connected(token=token())
    return client


def subscribed(stack: ExitStack, proxy: Proxy, channel: str = "news") -> JsonClient:
    client = websocket(stack, proxy)
    assert "subscribe" in client.ask("subscribe", channel=channel)
    return client


def streaming(stack: ExitStack, proxy: Proxy, transport: str) -> HttpStream:
    client = HttpStream(proxy.http_port, transport, {"token": token()})
    stack.callback(client.close)
    client.connected()
    assert "subscribe" in client.ask(proxy.http_port, "subscribe", channel="news")
    return client


def publish(proxy: Proxy, data: object, channel: str = "news") -> None:
    """As a backend does it."""
    body = json.dumps({"channel": channel, "data": data})
    answer = requested(proxy.api_port, "POST", "/api/publish", body, {"X-API-Key": KEY})
    assert answer.status == 200 and "result" in json.loads(answer.body), answer.body


def next_data(client: HttpStream) -> Any:
    found = client.take()
    assert found is not None
    return found["push"]["pub"]["data"]


# -- what goes through -------------------------------------------------------------------------------------


def test_every_transport_hears_what_a_backend_publishes(stack: ExitStack, site: Site) -> None:
    site.shard()
    site.shard()
    proxy = site.proxy()
    sockets = [subscribed(stack, proxy) for _ in range(4)]
    binary = ProtobufClient(f"ws://127.0.0.1:{proxy.http_port}", "?cf_protocol=protobuf")
    stack.callback(binary.close)
    binary.ask(connect=pb.ConnectRequest(token=token()))
    binary.ask(subscribe=pb.SubscribeRequest(channel="news"))
    streams = [streaming(stack, proxy, name) for name in ("http_stream", "sse", "http_stream", "sse")]
    assert sorted([site.clients(0), site.clients(1)]) == [4, 5]
    for number in range(5):
        publish(proxy, {"number": number})
    for client in sockets:
        assert client.heard("news", 5) == [{"number": number} for number in range(5)]
    assert [json.loads(binary.push("pub", "news").data)["number"] for _ in range(5)] == list(range(5))
    for stream in streams:
        # One by one, as they were sent: nothing on the way has kept them for the end of the answer.
        assert [next_data(stream)["number"] for _ in range(5)] == list(range(5))
        assert stream.headers["x-accel-buffering"] == "no"
        # Requests of one client reach both shards, and all are answered on its stream.
        for _ in range(4):
            assert "history" in stream.ask(proxy.http_port, "history", channel="news", limit=0)


def test_only_what_is_for_clients_is_public(site: Site) -> None:
    site.shard()
    proxy = site.proxy()
    key = {"X-API-Key": KEY}
    for path in ("/api", "/api/info", "/api/info/", "//api/info", "/./api/info", "/API/info", "/%61pi/info"):
        assert requested(proxy.http_port, "POST", path, "{}", key).status == 404, path
    url = f"http://127.0.0.1:{proxy.http_port}/api/info"  # as one asks a forward proxy
    assert requested(proxy.http_port, "POST", url, "{}", key).status == 404
    for path in ("/", "/metrics", "/readyz", "/connection", "/connection/websocket/", "/apiary"):
        assert requested(proxy.http_port, "GET", path).status == 404, path
    assert requested(proxy.http_port, "GET", "/health").status == 200


def test_backends_have_a_port_for_the_api_alone_and_need_the_key(site: Site) -> None:
    site.shard()
    proxy = site.proxy()
    answer = requested(proxy.api_port, "POST", "/api/info", "{}", {"X-API-Key": KEY})
    assert (answer.status, len(json.loads(answer.body)["result"]["nodes"])) == (200, 1)
    assert requested(proxy.api_port, "POST", "/api/info", "{}").status == 401
    for path in ("/connection/websocket", "/emulation", "/health", "/metrics", "/apiary"):
        assert requested(proxy.api_port, "GET", path, "", {"X-API-Key": KEY}).status == 404, path


def test_the_paths_that_are_public_are_those_of_the_settings() -> None:
    settings = Settings()
    http = haproxy_sections("frontend")["http"]
    assert http.one("acl", "stays", "path") == [
        settings.websocket.handler_prefix,
        settings.http_stream.handler_prefix,
        settings.sse.handler_prefix,
    ]
    assert http.one("acl", "asks", "path") == [settings.emulation.handler_prefix, "/health"]
    prefix = settings.http_api.handler_prefix
    [deny] = haproxy_sections("frontend")["api"].all("http-request", "deny")
    assert [word for word in deny if word.startswith("/")] == [prefix, f"{prefix}/"]


def test_fewer_requests_reach_a_shard_at_a_time_than_it_takes() -> None:
    [settings] = haproxy_sections("backend")["requests"].all("default-server")
    most, idle = (int(settings[settings.index(name) + 1]) for name in ("maxconn", "pool-max-conn"))
    assert most + idle < Settings().node.max_http_connections


def test_with_a_certificate_clients_come_over_tls(stack: ExitStack, site: Site, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    both = tmp_path / "spread.pem"
    both.write_bytes(Path(issued.cert).read_bytes() + Path(issued.key).read_bytes())
    site.shard()
    proxy = site.proxy(certificate=both)
    trusting = ssl.create_default_context(cafile=authority.ca)
    client = JsonClient(f"wss://127.0.0.1:{proxy.tls_port}", ssl=trusting)
    stack.callback(client.close)
    client.connected(token=token())
    assert "subscribe" in client.ask("subscribe", channel="news")
    publish(proxy, "secret")
    assert client.heard("news", 1) == ["secret"]


# -- connections that last, and connections that are kept --------------------------------------------------


def test_what_stays_outlives_the_proxys_patience_with_requests(stack: ExitStack, site: Site) -> None:
    site.shard()
    proxy = site.proxy(
        {
            "timeout http-request 10s": "timeout http-request 1s",
            "timeout http-keep-alive 60s": "timeout http-keep-alive 1s",
            "timeout server 60s": "timeout server 1s",
        }
    )
    client = subscribed(stack, proxy)
    streams = [streaming(stack, proxy, name) for name in ("http_stream", "sse")]
    # After them came one who asks, one who says nothing, and one who does not say all: the proxy waits for
    # them, and then no longer.
    asked = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.http_port), 20))
    asked.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    silent = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.http_port), 20))
    assert read_all(asked).startswith(b"HTTP/1.1 200")
    slow = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.http_port), 20))
    slow.sendall(b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    read_all(silent)
    assert read_all(slow).startswith(b"HTTP/1.1 408")
    publish(proxy, "still there")
    assert client.heard("news", 1) == ["still there"]
    assert [next_data(stream) for stream in streams] == ["still there"] * 2


def read_all(sock: socket.socket) -> bytes:
    came = b""
    while data := sock.recv(65536):
        came += data
    return came


def test_a_connection_that_asked_before_becomes_a_websocket_or_a_stream(stack: ExitStack, site: Site) -> None:
    site.shard()
    proxy = site.proxy()

    def used() -> socket.socket:
        """A connection on which requests of both kinds were answered."""
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.http_port), 20))
        for request, status in (
            (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
            (b"POST /emulation HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", b"400"),
            (b"GET /connection/websocket HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
            (b"GET /connection/sse HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        ):
            sock.sendall(request)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += sock.recv(1)
            assert head.startswith(b"HTTP/1.1 " + status), head
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length and b"connection: close" not in head.lower(), head
            left = int(length[1])
            while left:
                left -= len(sock.recv(left))
        return sock

    client = JsonClient(f"ws://127.0.0.1:{proxy.http_port}", sock=used())
    stack.callback(client.close)
    client.connected(token=token())
    assert "subscribe" in client.ask("subscribe", channel="news")
    stream = used()
    body = json.dumps({"id": 1, "connect": {"token": token()}}).encode()
    head = b"POST /connection/http_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    stream.sendall(head + body)
    came = b""
    while b'"session"' not in came:
        came += stream.recv(65536)
    publish(proxy, 1)
    assert client.heard("news", 1) == [1]


# -- shards that leave -------------------------------------------------------------------------------------


def test_clients_of_a_killed_shard_come_back_on_another_and_miss_nothing(
    stack: ExitStack, site: Site, tmp_path: Path
) -> None:
    site.shard()
    site.shard()
    proxy = site.proxy()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SPREAD_")}
    environ["SPREAD_TOKEN"] = token()
    tails = []
    for number in range(6):
        log = stack.enter_context((tmp_path / f"log{number}").open("wb"))
        out = stack.enter_context((tmp_path / f"out{number}").open("wb"))
        tail = subprocess.Popen(
            [
                *(sys.executable, "-m", "spread.client", "tail", "news"),
                *("--url", f"ws://127.0.0.1:{proxy.http_port}/connection/websocket"),
                *(["--protobuf"] if number % 2 else []),
            ],
            env=environ,
            stdout=out,
            stderr=log,
        )
        stack.callback(tail.wait)
        stack.callback(tail.kill)
        tails.append((tmp_path / f"log{number}", tmp_path / f"out{number}"))
    until(lambda: all("listening to news" in log.read_text() for log, _ in tails), 30, "six clients")
    assert site.clients(0) >= 3 and site.clients(1) >= 3
    publish(proxy, "before")
    until(lambda: all("before" in out.read_text() for _, out in tails), 20, "what was said before")
    killed, left = site.nodes
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait(10)
    publish(proxy, "meanwhile")
    until(lambda: site.clients(1) >= 6, 20, "all clients on the shard that is left")
    publish(proxy, "after")
    until(lambda: all("after" in out.read_text() for _, out in tails), 20, "what was said after")
    assert {out.read_text() for _, out in tails} == {'"before"\n"meanwhile"\n"after"\n'}
    assert left.process.poll() is None


def test_clients_of_a_shard_that_stops_are_told_and_find_another(stack: ExitStack, site: Site) -> None:
    stopping = site.shard()
    proxy = site.proxy()
    clients = [subscribed(stack, proxy) for _ in range(2)]
    streams = [streaming(stack, proxy, name) for name in ("http_stream", "sse")]
    site.shard()
    site.found(proxy)
    assert stopping.stop() == 0
    # The proxy does not know yet that it has gone, and turns nobody away.
    late = [subscribed(stack, proxy) for _ in range(5)]
    assert requested(proxy.http_port, "POST", "/emulation", "{}").status == 400
    assert [client.ended() for client in clients] == [(3001, "shutdown")] * 2
    for stream in streams:
        said = stream.take()
        assert said is not None and said["push"]["disconnect"]["code"] == 3001
        assert stream.take() is None
    publish(proxy, 1)
    assert [client.heard("news", 1) for client in late] == [[1]] * 5


def test_who_comes_to_a_full_shard_gets_to_another(stack: ExitStack, site: Site) -> None:
    site.shard("--max-clients", "1")
    site.shard()
    proxy = site.proxy()
    clients = [subscribed(stack, proxy) for _ in range(5)]
    streams = [streaming(stack, proxy, name) for name in ("http_stream", "sse")]
    publish(proxy, 1)
    assert [client.heard("news", 1) for client in clients] == [[1]] * 5
    assert [next_data(stream) for stream in streams] == [1, 1]


def test_asked_on_the_ops_port_the_proxy_sends_nobody_to_a_shard_without_a_hub(
    stack: ExitStack, site: Site
) -> None:
    site.shard()
    site.shard()
    words = (ROOT / "docs" / "operations.md").read_text().split()
    assert " ".join(words).count("option httpchk GET /readyz") == 1
    assert " ".join(words).count(":8000 check port 8100") == 1
    changes = {
        "option  httpchk GET /health": "option  httpchk GET /readyz",
        "node:8000 check": f"node:8000 check port {site.ops}",
    }
    proxy = site.proxy(changes)
    client = subscribed(stack, proxy)
    os.kill(site.hub.pid, signal.SIGSTOP)
    until(lambda: proxy.health() == 503, 30, "no shard that should get clients")
    assert client.silent() == [], "who is there stays"
    os.kill(site.hub.pid, signal.SIGCONT)
    until(lambda: proxy.health() == 200, 30, "the shards again")
    publish(proxy, "back")
    assert client.heard("news", 1) == ["back"]
