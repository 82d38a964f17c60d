"""A thousand WebSocket clients and a text client of one channel: each publication is encoded once for each
protocol and framed once for each transport, as the shard itself counts."""

from __future__ import annotations

import re
import selectors
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live.processes import home, started

pytestmark = pytest.mark.live

JSON_CLIENTS, PROTOBUF_CLIENTS, MESSAGES = 1000, 20, 25

CONFIG = """
[client]
allow_anonymous_connect_without_token = true
[channel.without_namespace]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
"""

UPGRADE = (
    b"GET /connection/websocket%b HTTP/1.1\r\nHost: localhost\r\n"
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
JSON_HELLO = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"lobby"}}'
PROTOBUF_HELLO = b"\x04\x08\x01\x22\x00\x0b\x08\x02\x2a\x07\x0a\x05lobby"


class Listener:
    """A client that connects, subscribes, and keeps what comes."""

    def __init__(self, port: int, is_protobuf: bool) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.came = b""
        self.sock.sendall(UPGRADE % (b"?format=protobuf" if is_protobuf else b""))
        while b"\r\n\r\n" not in self.came:
            self.came += self.sock.recv(4096)
        hello = PROTOBUF_HELLO if is_protobuf else JSON_HELLO
        self.sock.sendall(bytes([0x82 if is_protobuf else 0x81, 0x80 | len(hello)]) + bytes(4) + hello)
        done = b"\x08\x02" if is_protobuf else b'"id":2'
        while done not in self.came.partition(b"\r\n\r\n")[2]:
            self.came += self.sock.recv(4096)
        self.came = b""


def counters(port: int) -> dict[str, float]:
    """The counters of the shard."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(spread_\w+) (\S+)$", text, re.MULTILINE)}


def read_all(listeners: list[Listener], until: float, count: int) -> None:
    """Take in what comes until everybody has ``count`` messages."""
    with selectors.DefaultSelector() as selector:
        for listener in listeners:
            listener.sock.setblocking(False)
            selector.register(listener.sock, selectors.EVENT_READ, listener)
        waiting = set(listeners)
        while waiting:
            assert time.monotonic() < until, f"{len(waiting)} have not got everything"
            for key, _ in selector.select(0.5):
                listener = key.data
                data = listener.sock.recv(1 << 16)
                assert data, "closed"
                listener.came += data
                if listener.came.count(b"message-") >= count:
                    waiting.discard(listener)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_encoded_once_for_each_protocol_and_framed_once_for_each_transport(
    stack: ExitStack, tmp_path: Path
) -> None:
    config = tmp_path / "open.toml"
    config.write_text(CONFIG)
    arguments = ["--shard", "0", "--hub", "memory:", "--config", str(config)]
    arguments += ["--http", "127.0.0.1:0", "--ops", "127.0.0.1:0"]
    node = started(stack, *arguments, home=stack.enter_context(home()))
    node.wait_ready(1)
    ports = {name: int(port) for name, port in re.findall(r" (\w+)=\S+?:(\d+)", node.ready[0][1])}
    listeners = [
        Listener(ports["http"], index >= JSON_CLIENTS) for index in range(JSON_CLIENTS + PROTOBUF_CLIENTS)
    ]
    for listener in listeners:
        stack.callback(listener.sock.close)
    speaker, hearer = (socket.create_connection(("127.0.0.1", ports["text"]), timeout=20) for _ in range(2))
    for sock in (speaker, hearer):
        stack.callback(sock.close)
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += sock.recv(4096)
    before = counters(ports["ops"])
    for number in range(MESSAGES):
        speaker.sendall(b"message-%d\n" % number)
    heard = b""
    while heard.count(b"\n") < MESSAGES:
        heard += hearer.recv(65536)
    read_all(listeners, time.monotonic() + 60, MESSAGES)
    after = counters(ports["ops"])
    grown = {name: after[name] - before[name] for name in after}
    assert heard.split() == [b"message-%d" % number for number in range(MESSAGES)]
    for listener in listeners:
        assert re.findall(rb"message-(\d+)", listener.came) == [b"%d" % number for number in range(MESSAGES)]
    assert grown["spread_spread_total"] == MESSAGES
    assert grown["spread_deliveries_total"] == MESSAGES * (len(listeners) + 1)
    # Text, JSON and Protobuf.
    assert grown["spread_encoded_total"] == grown["spread_framed_total"] == 3 * MESSAGES
